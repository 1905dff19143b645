"""Which workers should run: one record in each worker's own folder, written before anything is done about it."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from llama_orch.contract.common import Problem
from llama_orch.contract.hive import SpawnRequest
from llama_orch.contract.patterns import IDENTIFIER

from . import atomic
from .model_memory import Needed
from .process import workers_dir

log = logging.getLogger(__name__)
RECORD_FILE = "record.json"
# The machine's memory among those that promises are of: beside it, GPUs' by their UUIDs.
RAM = "ram"


class WorkerRecord(BaseModel):
    """One worker as it should be, and what must be known to take it over after a restart of the agent.

    `device_uuids` are the GPUs that were meant when it was asked for, none for the CPU, and `sharing_uuids` those of
    them that use the machine's memory. `tensor_split` is the part of the model that each gets, `device_memory_bytes`
    what it is promised on each (on the CPU: of memory), `host_memory_bytes` of memory beside GPUs. `boot_id` is the
    boot in which it was last started, None before its first start. `streak` counts crashes without enough service
    between them. `stopping` and `failed` outlive the agent like everything else here. `admitted`: its devices were
    found good and free for it, and are its own through crashes, until it fails.
    """

    id: Annotated[str, StringConstraints(pattern=IDENTIFIER)]
    request: SpawnRequest
    created_at: datetime
    filename: str | None = None
    model_path: str | None = None
    download_id: str | None = None
    port: int | None = None
    device_uuids: list[str] = Field(default_factory=list)
    sharing_uuids: list[str] = Field(default_factory=list)
    tensor_split: list[float] | None = None
    ctx_per_slot: int | None = None
    threads: int | None = None
    memory_estimated_bytes: int | None = None
    device_memory_bytes: list[int] = Field(default_factory=list)
    host_memory_bytes: int = 0
    boot_id: str | None = None
    started_at: datetime | None = None
    ready_at: datetime | None = None
    restarts: int = 0
    streak: int = 0
    stopping: bool = False
    failed: bool = False
    admitted: bool = False
    last_error: Problem | None = None

    @property
    def cpu_threads(self) -> int:
        """How many cores it keeps busy."""
        return (self.threads or 1) if self.request.backend == "cpu" else 1

    def promise(self, needed: Needed) -> None:
        """Promise it that much."""
        self.device_memory_bytes, self.host_memory_bytes = needed.of_each, needed.host
        self.memory_estimated_bytes = sum(needed.of_each)

    def promised(self, *, serving: bool = False) -> Counter[str]:
        """Bytes that it was promised of each memory: of GPUs by their UUIDs, of the machine's under RAM.

        One that is `serving` has taken all that it was promised of GPUs; what it holds of memory is to be measured.
        """
        found: Counter[str] = Counter()
        if not (serving and self.device_uuids):
            memories = [RAM if uuid in self.sharing_uuids else uuid for uuid in self.device_uuids] or [RAM]
            for memory, needed in zip(memories, self.device_memory_bytes, strict=False):
                found[memory] += needed
        if self.host_memory_bytes:
            found[RAM] += self.host_memory_bytes
        return found

    def same_spec(self, request: SpawnRequest) -> bool:
        """Whether that request asks for this worker; who asks, and in which words, does not matter."""
        return _meaning(self.request) == _meaning(request)


def _meaning(request: SpawnRequest) -> dict[str, object]:
    fields = request.model_dump(exclude={"origin", "device", "devices", "split_mode"})
    return fields | {"devices": request.all_devices, "split": request.split}


def _of(folder: Path) -> WorkerRecord:
    """Raises OSError, ValidationError, also where it is of another worker than its folder."""
    record = WorkerRecord.model_validate_json(atomic.read_bytes(folder / RECORD_FILE))
    if record.id != folder.name:
        raise OSError(f"it is of worker {record.id}")
    return record


class WorkerRecords:
    """The folder of workers' folders."""

    def __init__(self, state_dir: Path) -> None:
        self._home = workers_dir(state_dir)
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, worker_id: str) -> Path:
        """A worker's own folder."""
        return self._home / worker_id

    def load(self) -> list[WorkerRecord]:
        """All records, oldest first. A folder without one is left of a spawn or a stop that a crash cut: deleted."""
        records = []
        for folder in self._home.iterdir():
            try:
                records.append(_of(folder))
            except FileNotFoundError:
                shutil.rmtree(folder, ignore_errors=True)
            except (OSError, ValidationError) as error:
                log.error("the record of worker %s cannot be read, so it is not run: %s", folder.name, error)  # noqa: TRY400
        return sorted(records, key=lambda record: record.created_at)

    def save(self, record: WorkerRecord) -> None:
        """Write a record."""
        folder = self.folder(record.id)
        folder.mkdir(mode=0o700, exist_ok=True)
        atomic.write_text(folder / RECORD_FILE, record.model_dump_json())

    def remove(self, worker_id: str) -> None:
        """Forget a worker: its record first, so that a crash in between leaves none that would be started again."""
        folder = self.folder(worker_id)
        (folder / RECORD_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
