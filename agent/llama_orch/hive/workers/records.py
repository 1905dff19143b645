"""Which workers should run: one record in each worker's own folder, written before anything is done about it."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from llama_orch.base import files
from llama_orch.contract.common import Problem
from llama_orch.contract.hive import SpawnRequest
from llama_orch.contract.patterns import IDENTIFIER
from llama_orch.contract.process import SPEC_FILE

from ..models.memory import Needed
from ..shim import LAUNCH_FILE
from .process_table import workers_dir

log = logging.getLogger(__name__)
RECORD_FILE = "record.json"
# What the agent writes into a worker's folder; its shim, which may live, writes the rest.
_WRITTEN = (RECORD_FILE, SPEC_FILE, LAUNCH_FILE)
# The machine's memory among those that promises are of: beside it, GPUs' by their UUIDs.
RAM = "ram"


class WorkerRecord(BaseModel):
    """One worker as it should be, and what must be known to take it over after a restart of the agent.

    `device_uuids` are the GPUs that were meant when it was asked for, none for the CPU, and `sharing_uuids` those of
    them that use the machine's memory. `tensor_split` is the part of the model that each gets, `device_memory_bytes`
    what it is promised on each (on the CPU: of memory), `host_memory_bytes` of memory beside GPUs. `boot_id` is the
    boot in which it was last started, None before its first start; `ready_uptime_s` is when it was ready, in seconds
    since that boot. `streak` counts crashes without enough service
    between them. `stopping` and `failed` outlive the agent like everything else here; `drain_until_s` is until when its
    running answers may go on where it is stopped, in seconds since that boot. `admitted`: its devices were
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
    ready_uptime_s: float | None = None
    restarts: int = 0
    streak: int = 0
    stopping: bool = False
    drain_until_s: float | None = None
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


def _read(text: bytes, folder: Path) -> WorkerRecord | None:
    try:
        record = WorkerRecord.model_validate_json(text)
    except ValidationError:
        return None
    return record if record.id == folder.name else None


def _meaning(request: SpawnRequest) -> dict[str, object]:
    fields = request.model_dump(exclude={"origin", "device", "devices", "split_mode"})
    return fields | {"devices": request.all_devices, "split": request.split}


class WorkerRecords:
    """The folder of workers' folders."""

    def __init__(self, state_dir: Path) -> None:
        # Ids of workers of which nothing can be read.
        self.left_alone: set[str] = set()
        self._home = workers_dir(state_dir)
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, worker_id: str) -> Path:
        """A worker's own folder."""
        return self._home / worker_id

    def load(self) -> list[WorkerRecord]:
        """All records, oldest first. A folder without one is left of a spawn or a stop that a crash cut: deleted.

        A damaged one is made anew from the order that the worker was started with. Where that is damaged as well, the
        folder is left alone, and so is the worker if it lives.
        """
        records = []
        for folder in self._home.iterdir():
            files.sweep(folder, *map(files.begun, _WRITTEN))
            try:
                text = files.read_bytes(folder / RECORD_FILE)
            except FileNotFoundError:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            except OSError as error:
                log.error("the record of worker %s cannot be read: %s", folder.name, error)  # noqa: TRY400
                text = b""
            record = _read(text, folder) or self._from_order(folder)
            if record is not None:
                records.append(record)
        return sorted(records, key=lambda record: record.created_at)

    def _from_order(self, folder: Path) -> WorkerRecord | None:
        order = files.read_json(folder / SPEC_FILE)
        record = _read(json.dumps(order.get("record") if isinstance(order, dict) else None).encode(), folder)
        if record is None:
            self.left_alone.add(folder.name)
            log.error(
                "neither the record nor the order of worker %s can be read: a process of it is not ended, and not "
                "shown by the API. End it by hand and remove %s",
                folder.name,
                folder,
            )
            return None
        record.last_error = Problem(
            code="record_damaged",
            message=f"its record was damaged, and made anew from {SPEC_FILE}",
            what_to_do="look at the disk of state_dir",
        )
        log.error("the record of worker %s was damaged, and is made anew from its order", folder.name)
        with contextlib.suppress(OSError):
            self.save(record)
        return record

    def save(self, record: WorkerRecord) -> None:
        """Write a record. Raises OSError."""
        self.write(record.id, record.model_dump_json())

    def write(self, worker_id: str, text: str) -> None:
        """Write a record that is JSON already. Raises OSError."""
        folder = self.folder(worker_id)
        folder.mkdir(mode=0o700, exist_ok=True)
        files.write_text(folder / RECORD_FILE, text)

    def remove(self, worker_id: str) -> None:
        """Forget a worker: its record first, so that a crash in between leaves none that would be started again."""
        folder = self.folder(worker_id)
        (folder / RECORD_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
