"""What a hive runs on: processor, memory, disk and GPUs. Sizes are bytes; what a device does not tell is null."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from .common import Response

Backend = Literal["cpu", "cuda"]
SplitMode = Literal["layer", "row"]
# As NVML numbers GPUs.
DeviceIndex = Annotated[int, Field(ge=0, le=255)]
# As many devices as llama.cpp can split a model over (`llama_max_devices`).
MOST_DEVICES = 16


class MemoryInfo(Response):
    """A memory or a disk."""

    total_bytes: int
    available_bytes: int


class CpuInfo(Response):
    """The processor and the load on it."""

    model: str
    cores: int
    load_1m: float


class GpuEcc(Response):
    """Errors of a GPU's memory that its ECC found: since the driver was loaded, and ever.

    Where rows were bad, spare ones take their place at the next reset of the GPU (`remap_pending`), or none is left
    (`remap_failed`).
    """

    corrected: int | None = None
    uncorrected: int | None = None
    corrected_ever: int | None = None
    uncorrected_ever: int | None = None
    remap_pending: bool = False
    remap_failed: bool = False


class GpuProcess(Response):
    """A process that computes on a GPU; `worker_id` where it is a worker of this hive."""

    pid: int
    memory_bytes: int | None = None
    worker_id: str | None = None


class MigDevice(Response):
    """A part of a GPU that was divided up (MIG)."""

    uuid: str
    name: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None


class Gpu(Response):
    """A GPU as NVML tells it.

    `slowdowns` are the reasons for which its clocks are held down now. `shares_memory`: it has none of its own and
    uses the machine's. `problem` says why nothing more can be told of it.
    """

    index: int
    uuid: str
    name: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    slowdown_celsius: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    graphics_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    slowdowns: list[str] = Field(default_factory=list)
    pci_address: str | None = None
    compute_capability: str | None = None
    ecc: GpuEcc | None = None
    mig_enabled: bool | None = None
    mig_devices: list[MigDevice] = Field(default_factory=list)
    processes: list[GpuProcess] | None = None
    shares_memory: bool = False
    problem: str | None = None


class GpuFault(StrEnum):
    """Why NVML does not answer."""

    LIBRARY_MISSING = "library_missing"
    DRIVER_NOT_LOADED = "driver_not_loaded"
    VERSION_MISMATCH = "version_mismatch"
    NO_ANSWER = "no_answer"
    OTHER = "other"


class GpuStatus(Response):
    """Whether NVML answers; where it does not, `fault` and `reason` say why."""

    available: bool
    fault: GpuFault | None = None
    reason: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None


class Xid(Response):
    """An error that the driver reported of a GPU, by NVIDIA's numbering."""

    uuid: str
    code: int
    at: AwareDatetime


class ConditionType(StrEnum):
    """What can be wrong with a hive's GPUs."""

    DRIVER_MISMATCH = "driver_mismatch"
    DRIVER_SILENT = "driver_silent"
    GPU_LOST = "gpu_lost"
    GPU_MISSING = "gpu_missing"
    GPU_UNREADABLE = "gpu_unreadable"
    RESET_NEEDED = "reset_needed"
    ECC_UNCORRECTED = "ecc_uncorrected"
    ROW_REMAP_PENDING = "row_remap_pending"
    ROW_REMAP_FAILED = "row_remap_failed"
    XID = "xid"
    OVER_TEMPERATURE = "over_temperature"


class Remedy(StrEnum):
    """What can be done about a condition: the playbook of this name."""

    RELOAD_DRIVER = "reload_driver"
    RESET_GPU = "reset_gpu"
    REBOOT = "reboot"
    COLLECT_GPU_REPORT = "collect_gpu_report"


class Condition(Response):
    """Something that is wrong now. `uuid` and `index` are null where it concerns all GPUs.

    `cordons`: no new worker is started on what it concerns. `remedy` is the playbook that a user may run or allow.
    """

    type: ConditionType
    uuid: str | None = None
    index: int | None = None
    message: str
    what_to_do: str
    cordons: bool
    remedy: Remedy | None = None


class HostConditionType(StrEnum):
    """What can be wrong with a hive as a whole."""

    WORKERS_UNCONFINED = "workers_unconfined"


class HostCondition(Response):
    """Something of the whole machine that is not as it should be now; workers are started all the same."""

    type: HostConditionType
    message: str
    what_to_do: str


class LibraryResult(StrEnum):
    """What the self-test found of one of the engine's libraries. Only `passed` is used.

    `not_tested`: it could not be tried, for want of memory or a device, and is used as if it were not known to be bad.
    """

    PASSED = "passed"
    DIED = "died"
    WRONG = "wrong"
    HUNG = "hung"
    NOT_TESTED = "not_tested"


class EngineLibrary(Response):
    """One of the engine's libraries: its file, what it is for ("haswell", "cuda"), and how the self-test went."""

    file: str
    name: str
    backend: Backend
    result: LibraryResult
    reason: str | None = None
    seconds: float | None = None


class EngineStatus(Response):
    """The engine's self-test, once for each machine, build and boot. `cpu_library` is the file that workers use.

    CPU libraries are tried in the order of their own score until one passes; those that the processor cannot run and
    those after it are not listed. `tested_at` is null until it has ended.
    """

    build: str
    tested_at: AwareDatetime | None = None
    cpu_library: str | None = None
    libraries: list[EngineLibrary] = Field(default_factory=list)


class Devices(Response):
    """`GET /api/v1/devices`. `conditions` are of GPUs, `host_conditions` of the whole machine.

    `backends` are those that a worker can be started with.
    """

    cpu: CpuInfo
    memory: MemoryInfo
    disk: MemoryInfo
    nvml: GpuStatus
    gpus: list[Gpu]
    xids: list[Xid] = Field(default_factory=list)
    conditions: list[Condition] = Field(default_factory=list)
    host_conditions: list[HostCondition] = Field(default_factory=list)
    backends: list[Backend] = Field(default_factory=lambda: ["cpu"])
    engine: EngineStatus | None = None
