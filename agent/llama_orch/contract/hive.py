"""What a hive takes and answers: models, downloads, workers. Sizes are bytes, times RFC 3339 UTC."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, model_validator

from . import model_ref as refs
from .common import Problem, Request, Response
from .devices import MOST_DEVICES, Backend, DeviceIndex, SplitMode
from .patterns import GgufFilename, WorkerName

Origin = Literal["rest", "inventory"]
Share = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


class WorkerStatus(StrEnum):
    """The life of a worker; `hive/workers/state.py` owns the transitions."""

    DOWNLOADING = "downloading"
    LOADING = "loading"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class DownloadStatus(StrEnum):
    """The life of a download."""

    QUEUED = "queued"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ModelStatus(StrEnum):
    """What can be done with a model's files."""

    READY = "ready"
    DOWNLOADING = "downloading"
    INCOMPLETE = "incomplete"
    CORRUPT = "corrupt"


class _NamesModel(Request):
    model_ref: refs.ModelRefText
    filename: GgufFilename | None = None

    @model_validator(mode="after")
    def _agree(self) -> _NamesModel:
        refs.parse(self.model_ref, self.filename)
        return self

    @property
    def ref(self) -> refs.ModelRef:
        """The parsed reference."""
        return refs.parse(self.model_ref, self.filename)


class DownloadRequest(_NamesModel):
    """`POST /api/v1/models/download`. Without a file name the hive picks the quantisation and says which."""

    origin: Origin = "rest"


class SpawnRequest(_NamesModel):
    """`POST /api/v1/workers`. A model that is not there is downloaded first.

    `device` is 0 where neither it nor `devices` is given. `tensor_split` says how much of the model each of several
    `devices` gets, in proportion to each other; by default as much as they have free memory. With
    `reuse_across_scopes` each client reuses what any other's prompts left in a slot, and can tell by it what they were.
    """

    backend: Backend
    device: DeviceIndex | None = None
    devices: list[DeviceIndex] | None = Field(default=None, min_length=1, max_length=MOST_DEVICES)
    split_mode: SplitMode | None = None
    tensor_split: list[Share] | None = Field(default=None, min_length=2, max_length=MOST_DEVICES)
    slots: int = Field(default=1, ge=1, le=256)
    name: WorkerName | None = None
    ctx_per_slot: int | None = Field(default=None, ge=64, le=1_048_576)
    threads: int | None = Field(default=None, ge=1, le=512)
    gpu_layers: int | None = Field(default=None, ge=-1, le=10_000)
    reuse_across_scopes: bool = False
    origin: Origin = "rest"

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> SpawnRequest:
        if self.devices is not None and self.device is not None:
            raise ValueError("device: give it or devices, not both")
        if self.devices is not None and len(set(self.devices)) < len(self.devices):
            raise ValueError("devices: names a GPU twice")
        count = len(self.all_devices)
        if count == 1 and self.tensor_split is not None:
            raise ValueError("tensor_split: there is nothing to split on one device; give several devices")
        if count == 1 and self.split_mode is not None:
            raise ValueError("split_mode: there is nothing to split on one device; give several devices")
        if self.tensor_split is not None and len(self.tensor_split) != count:
            raise ValueError(
                f"tensor_split: has {len(self.tensor_split)} numbers for {count} devices; give one for each"
            )
        return self

    @property
    def all_devices(self) -> list[int]:
        """The indices of the devices that are meant, in order."""
        return self.devices or [self.device or 0]

    @property
    def split(self) -> SplitMode | None:
        """How the model is split, None on one device."""
        return (self.split_mode or "layer") if len(self.all_devices) > 1 else None


class Model(Response):
    """A model on the hive's disk; its parts `-0000N-of-0000M` count as one."""

    model_ref: str
    filename: str
    size_bytes: int
    sha256: str | None
    status: ModelStatus
    parts: int = 1
    workers: list[str] = Field(default_factory=list)
    origin: Origin = "rest"


class ModelList(Response):
    """`GET /api/v1/models`."""

    models: list[Model]


class Download(Response):
    """A download under way or ended; `percentage` is 0 to 100."""

    download_id: str
    model_ref: str
    filename: str | None
    status: DownloadStatus
    bytes_done: int
    bytes_total: int | None
    bytes_per_second: float
    percentage: float
    error: Problem | None = None
    chosen_because: str | None = None
    origin: Origin = "rest"
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None


class DownloadList(Response):
    """`GET /api/v1/models/downloads`."""

    downloads: list[Download]


class Worker(Response):
    """A worker as the hive knows it.

    `tokens_per_second` is what all of its slots together generate, 0 where it does not answer.
    `device` is the first of `devices`, whose GPUs are `device_uuids`; `tensor_split` is the part of the model that each
    of several gets, together 1. `memory_estimated_bytes` is of all of its devices together,
    `device_memory_estimated_bytes` of each, `host_memory_estimated_bytes` of the machine's memory beside GPUs.
    """

    id: str
    name: str | None
    model_ref: str
    filename: str | None
    backend: Backend
    device: int
    devices: list[int] = Field(default_factory=lambda: [0])
    device_uuids: list[str] = Field(default_factory=list)
    split_mode: SplitMode | None = None
    tensor_split: list[float] | None = None
    slots: int
    slots_busy: int
    tokens_per_second: float = 0.0
    ctx_per_slot: int | None
    status: WorkerStatus
    url: str | None
    pid: int | None
    started_at: AwareDatetime | None
    restarts: int
    memory_estimated_bytes: int | None
    device_memory_estimated_bytes: list[int] = Field(default_factory=list)
    host_memory_estimated_bytes: int = 0
    last_error: Problem | None
    percentage: float | None = None
    download_id: str | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    reuse_across_scopes: bool = False
    origin: Origin = "rest"


class WorkerList(Response):
    """`GET /api/v1/workers`."""

    workers: list[Worker]


class HiveInfo(Response):
    """`GET /api/v1/hive`: proof to an authenticated caller of which hive this is."""

    hive_id: str
    version: str
    pid: int
    started_at: AwareDatetime
    boot_id: str
