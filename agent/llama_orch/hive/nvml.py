"""The GPUs, through NVML; the only importer of pynvml. No library and no driver are answers, not errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from llama_orch.contract.hive import Gpu, GpuStatus

TIMEOUT_S = 5.0
T = TypeVar("T")


class Gpus:
    """Asks NVML in a thread. A driver that hangs takes that one thread, and until it answers the GPUs are unknown."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def read(self) -> tuple[GpuStatus, list[Gpu]]:
        """Whether NVML answers, and every GPU as it is now."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._read), TIMEOUT_S)
        except TimeoutError:
            return GpuStatus(available=False, reason=f"the NVIDIA driver did not answer within {TIMEOUT_S:.0f} s"), []

    def _read(self) -> tuple[GpuStatus, list[Gpu]]:
        if not self._lock.acquire(timeout=TIMEOUT_S / 2):
            return GpuStatus(available=False, reason="the NVIDIA driver has not answered an earlier question"), []
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._lock.release()
            return GpuStatus(available=False, reason=_explain(error)), []
        try:
            status = GpuStatus(
                available=True,
                driver_version=_or_none(pynvml.nvmlSystemGetDriverVersion),
                cuda_version=_cuda_version(),
            )
            return status, [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            return GpuStatus(available=False, reason=_explain(error)), []
        finally:
            _or_none(pynvml.nvmlShutdown)
            self._lock.release()


def _explain(error: pynvml.NVMLError) -> str:
    code = getattr(error, "value", None)
    if code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "the NVIDIA driver's library libnvidia-ml.so.1 is not on this machine"
    if code == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return "the NVIDIA driver in the kernel and its library differ in version: reboot the machine"
    if code == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "the NVIDIA kernel driver is not loaded"
    return f"NVML answers: {error}"


def _or_none(question: Callable[..., T], *arguments: Any) -> T | None:
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None


def _cuda_version() -> str | None:
    number = _or_none(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = _or_none(pynvml.nvmlDeviceGetMemoryInfo, handle)
    utilisation = _or_none(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power = _or_none(pynvml.nvmlDeviceGetPowerUsage, handle)
    return Gpu(
        index=index,
        uuid=str(_or_none(pynvml.nvmlDeviceGetUUID, handle) or ""),
        name=str(_or_none(pynvml.nvmlDeviceGetName, handle) or "unknown"),
        memory_total_bytes=int(memory.total) if memory else None,
        memory_used_bytes=int(memory.used) if memory else None,
        memory_free_bytes=int(memory.free) if memory else None,
        utilization_percent=float(utilisation.gpu) if utilisation else None,
        temperature_celsius=_or_none(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        power_watts=power / 1000 if power is not None else None,
    )
