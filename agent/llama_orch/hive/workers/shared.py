"""What all workers of a hive have in common: where each one's life meets the rest of the agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..devices.engine_test import EngineTest
from ..models.downloads.service import Downloads
from ..ordered_writes import OrderedWrites
from ..settings import HiveSettings
from .admission import Admission
from .probe import Probe
from .processes import WorkerProcesses
from .records import WorkerRecords


@dataclass(frozen=True)
class Shared:
    """What is written of a worker goes through `writes`, by its id. `count_restart` is told of each crash."""

    settings: HiveSettings
    records: WorkerRecords
    writes: OrderedWrites
    downloads: Downloads
    probe: Probe
    processes: WorkerProcesses
    engine: EngineTest
    admission: Admission
    count_restart: Callable[[], None]
