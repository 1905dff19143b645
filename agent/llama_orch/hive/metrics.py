"""What the hive counts, and the gauges that each scrape reads anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from llama_orch.contract.devices import (
    ConditionType,
    Devices,
    Gpu,
    GpuEcc,
    HostConditionType,
    LibraryResult,
    MemoryInfo,
)
from llama_orch.contract.hive import DownloadStatus, Model, ModelStatus, WorkerStatus

from .models.downloads.download import Download
from .workers.keeper import WorkerKeeper

_GPU_LABELS = ["gpu"]
_Counted = WorkerStatus | ModelStatus | DownloadStatus | ConditionType | HostConditionType


class Metrics:
    """The hive's own metrics; those of requests come from the application."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"llama_orch_hive_{name}", text, list(labels), registry=registry)

        self.worker_restarts = Counter(
            "llama_orch_hive_worker_restarts", "Workers started again after a crash", registry=registry
        )
        self.downloaded_bytes = Counter(
            "llama_orch_hive_downloaded_bytes", "Bytes of models that arrived", registry=registry
        )
        self._workers = gauge("workers", "Workers by state", ["status"])
        self._slots = gauge("slots", "Slots of workers that serve, by use", ["state"])
        self._speed = gauge("generated_tokens_per_second", "Tokens that all workers together generate in a second")
        self._models = gauge("models", "Models on the disk by state", ["status"])
        self._models_bytes = gauge("models_bytes", "Bytes of models that are ready")
        self._downloads = gauge("downloads", "Downloads by state", ["status"])
        self._memory_total = gauge("memory_total_bytes", "Memory of the machine")
        self._memory_available = gauge("memory_available_bytes", "Memory that can be had without swapping")
        self._disk_total = gauge("disk_total_bytes", "Size of the disk with the models")
        self._disk_available = gauge("disk_available_bytes", "Free bytes of the disk with the models")
        self._load = gauge("cpu_load_1m", "Load average over one minute")
        self._cores = gauge("cpu_cores", "Processors that may be used")
        self._gpus = gauge("gpus", "GPUs that NVML shows")
        self._engine = gauge(
            "engine_libraries", "What the self-test found of the engine's libraries", ["library", "result"]
        )
        self._nvml_up = gauge("nvml_available", "Whether NVML answers: 1 or 0")
        self._gpu_gauges = {
            "memory_total_bytes": gauge("gpu_memory_total_bytes", "Memory of a GPU", _GPU_LABELS),
            "memory_used_bytes": gauge("gpu_memory_used_bytes", "Used memory of a GPU", _GPU_LABELS),
            "memory_free_bytes": gauge("gpu_memory_free_bytes", "Free memory of a GPU", _GPU_LABELS),
            "utilization_percent": gauge("gpu_utilization_percent", "Use of a GPU, 0 to 100", _GPU_LABELS),
            "temperature_celsius": gauge("gpu_temperature_celsius", "Temperature of a GPU", _GPU_LABELS),
            "slowdown_celsius": gauge("gpu_slowdown_celsius", "Temperature at which a GPU slows down", _GPU_LABELS),
            "power_watts": gauge("gpu_power_watts", "Power that a GPU draws", _GPU_LABELS),
            "power_limit_watts": gauge("gpu_power_limit_watts", "Power that a GPU may draw", _GPU_LABELS),
            "graphics_clock_mhz": gauge("gpu_graphics_clock_mhz", "Clock of a GPU's processors", _GPU_LABELS),
            "memory_clock_mhz": gauge("gpu_memory_clock_mhz", "Clock of a GPU's memory", _GPU_LABELS),
        }
        self._gpu_ecc = {
            "corrected": gauge("gpu_ecc_corrected_errors", "Corrected since the driver was loaded", _GPU_LABELS),
            "uncorrected": gauge("gpu_ecc_uncorrected_errors", "Uncorrected since the driver was loaded", _GPU_LABELS),
        }
        self._gpu_info = gauge("gpu_info", "1 for each GPU", [*_GPU_LABELS, "uuid", "name", "pci_address"])
        self._gpu_slowdown = gauge("gpu_slowdown", "1 where a GPU's clocks are held down", [*_GPU_LABELS, "reason"])
        self._gpu_last_xid = gauge("gpu_last_xid", "Last error that the driver reported of a GPU", _GPU_LABELS)
        self._host_conditions = gauge("host_conditions", "What is wrong with the machine as a whole", ["type"])
        self._gpu_conditions = gauge("gpu_conditions", "What is wrong with GPUs", ["type"])

    def refresh(
        self, keepers: list[WorkerKeeper], models: list[Model], downloads: list[Download], devices: Devices
    ) -> None:
        """Set every gauge to what is the case now, with zeros for every state."""
        _count(self._workers, WorkerStatus, (keeper.state.status for keeper in keepers))
        _count(self._models, ModelStatus, (model.status for model in models))
        _count(self._downloads, DownloadStatus, (download.record.status for download in downloads))
        serving = [keeper for keeper in keepers if keeper.state.serving]
        busy = sum(keeper.slots_busy for keeper in serving)
        self._slots.labels("busy").set(busy)
        self._slots.labels("idle").set(sum(keeper.record.request.slots for keeper in serving) - busy)
        self._speed.set(sum(keeper.tokens_per_second for keeper in serving))
        self._models_bytes.set(sum(model.size_bytes for model in models if model.status is ModelStatus.READY))
        _fill(self._memory_total, self._memory_available, devices.memory)
        _fill(self._disk_total, self._disk_available, devices.disk)
        self._load.set(devices.cpu.load_1m)
        self._cores.set(devices.cpu.cores)
        self._gpus.set(len(devices.gpus))
        self._nvml_up.set(int(devices.nvml.available))
        self._refresh_gpus(devices)
        _count(self._host_conditions, HostConditionType, (condition.type for condition in devices.host_conditions))
        self._engine.clear()
        for library in devices.engine.libraries if devices.engine else ():
            for result in LibraryResult:
                self._engine.labels(library.name, result.value).set(int(library.result is result))

    def _refresh_gpus(self, devices: Devices) -> None:
        # A GPU that is gone must not go on with its last values.
        for gauge in (
            *self._gpu_gauges.values(), *self._gpu_ecc.values(), self._gpu_info, self._gpu_slowdown, self._gpu_last_xid
        ):  # fmt: skip
            gauge.clear()
        for gpu in devices.gpus:
            number = str(gpu.index)
            _set_known(self._gpu_gauges, gpu, number)
            if gpu.ecc is not None:
                _set_known(self._gpu_ecc, gpu.ecc, number)
            self._gpu_info.labels(number, gpu.uuid, gpu.name, gpu.pci_address or "").set(1)
            for reason in gpu.slowdowns:
                self._gpu_slowdown.labels(number, reason).set(1)
            for xid in devices.xids:
                if xid.uuid == gpu.uuid:
                    self._gpu_last_xid.labels(number).set(xid.code)
        _count(self._gpu_conditions, ConditionType, (condition.type for condition in devices.conditions))


def _set_known(gauges: Mapping[str, Gauge], source: Gpu | GpuEcc, gpu: str) -> None:
    for name, gauge in gauges.items():
        if (value := getattr(source, name)) is not None:
            gauge.labels(gpu).set(value)


def _count(gauge: Gauge, states: type[_Counted], found: Iterable[str]) -> None:
    numbers = dict.fromkeys(states, 0)
    for status in found:
        numbers[status] += 1  # pyright: ignore[reportArgumentType]
    for status, number in numbers.items():
        gauge.labels(status.value).set(number)


def _fill(total: Gauge, available: Gauge, info: MemoryInfo) -> None:
    total.set(info.total_bytes)
    available.set(info.available_bytes)
