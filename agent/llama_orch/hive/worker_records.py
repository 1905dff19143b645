"""Which workers should run: one record in each worker's own folder, written before anything is done about it."""

from __future__ import annotations

import logging
import shutil
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from llama_orch.contract.common import Problem
from llama_orch.contract.hive import SpawnRequest

from . import atomic
from .process import workers_dir

log = logging.getLogger(__name__)
RECORD_FILE = "record.json"


class WorkerRecord(BaseModel):
    """One worker as it should be, and what must be known to take it over after a restart of the agent.

    `device_uuids` are the GPUs that were meant when it was asked for, none for the CPU; `tensor_split` is the part of
    the model that each gets, `device_memory_bytes` what it is promised on each (on the CPU: of memory). `boot_id` is
    the boot in which it was last started, None before its first start. `streak` counts crashes without enough service
    between them. `stopping` and `failed` outlive the agent like everything else here.
    """

    id: str
    request: SpawnRequest
    created_at: datetime
    filename: str | None = None
    model_path: str | None = None
    download_id: str | None = None
    port: int | None = None
    device_uuids: list[str] = Field(default_factory=list)
    tensor_split: list[float] | None = None
    ctx_per_slot: int | None = None
    threads: int | None = None
    memory_estimated_bytes: int | None = None
    device_memory_bytes: list[int] = Field(default_factory=list)
    boot_id: str | None = None
    started_at: datetime | None = None
    ready_at: datetime | None = None
    restarts: int = 0
    streak: int = 0
    stopping: bool = False
    failed: bool = False
    last_error: Problem | None = None

    @property
    def cpu_threads(self) -> int:
        """How many cores it keeps busy."""
        return (self.threads or 1) if self.request.backend == "cpu" else 1

    def promise(self, bytes_of_each: list[int]) -> None:
        """Promise it that much of each of its devices."""
        self.device_memory_bytes, self.memory_estimated_bytes = bytes_of_each, sum(bytes_of_each)

    def promised_on(self, device_uuid: str | None) -> int:
        """Bytes that it was promised of that GPU, or of the machine's memory where it is None."""
        if device_uuid is None:
            return 0 if self.device_uuids else (self.memory_estimated_bytes or 0)
        return dict(zip(self.device_uuids, self.device_memory_bytes, strict=False)).get(device_uuid, 0)

    def same_spec(self, request: SpawnRequest) -> bool:
        """Whether that request asks for this worker; who asks, and in which words, does not matter."""
        return _meaning(self.request) == _meaning(request)


def _meaning(request: SpawnRequest) -> dict[str, object]:
    fields = request.model_dump(exclude={"origin", "device", "devices", "split_mode"})
    return fields | {"devices": request.all_devices, "split": request.split}


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
                records.append(WorkerRecord.model_validate_json((folder / RECORD_FILE).read_bytes()))
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
