"""Reads NVML in a process of its own: `python -m llama_orch.hive.devices.nvml_child`. The only importer of pynvml.

A driver that hangs, a library that crashes or was replaced under our feet takes this process, never the agent. Each
line on stdin asks for one reading, each line on stdout is one, as JSON in the shape of `gpus.Reading`. After a reading
that says NVML is not there, the process ends: the next one begins with the library as it is then.

Source: NVIDIA's header `nvml.h`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pynvml

_PR_SET_PDEATHSIG = 1
_KEPT_XIDS = 64
_EVENT_WAIT_MS = 1000
_FAULTS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "library_missing",
        "the NVIDIA driver's library libnvidia-ml.so.1 is not on this machine",
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: ("driver_not_loaded", "the NVIDIA kernel driver is not loaded"),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "version_mismatch",
        "the NVIDIA driver in the kernel and its library differ in version: reboot the machine",
    ),
}
_SLOWDOWNS = {
    pynvml.nvmlClocksEventReasonSwPowerCap: "power_cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "software_thermal",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hardware_thermal",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power_brake",
}
# Of one GPU; the others go on.
_PROBLEMS = {pynvml.NVML_ERROR_GPU_IS_LOST: "gpu_lost", pynvml.NVML_ERROR_RESET_REQUIRED: "reset_required"}


def main() -> None:
    """Answer each line of stdin until it ends."""
    # A call into the driver that never returns would keep this process when its agent is long gone.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for _ in sys.stdin:
        found = _reading()
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
        if not found["status"]["available"]:
            return


class _XidWatch:
    """Collects the errors that the driver reports, from the first reading on."""

    def __init__(self) -> None:
        self._seen: deque[dict[str, Any]] = deque(maxlen=_KEPT_XIDS)
        self._set: Any = None

    def start(self, count: int) -> None:
        """Watch so many GPUs; those that are lost or report no events are left out."""
        self._set = _ask(pynvml.nvmlEventSetCreate)
        if self._set is None:
            return
        for index in range(count):
            with contextlib.suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._set)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._set, _EVENT_WAIT_MS)
            except pynvml.NVMLError as error:
                if _code(error) != pynvml.NVML_ERROR_TIMEOUT:
                    time.sleep(_EVENT_WAIT_MS / 1000)
                continue
            self._seen.append({"uuid": _uuid(event.device), "code": int(event.eventData), "at": time.time()})

    def new(self) -> list[dict[str, Any]]:
        """What was reported since the last question, the oldest first."""
        return [self._seen.popleft() for _ in range(len(self._seen))]


_xids = _XidWatch()


@functools.cache
def _begin() -> None:
    pynvml.nvmlInit()
    _xids.start(pynvml.nvmlDeviceGetCount())


def _reading() -> dict[str, Any]:
    try:
        _begin()
        count = pynvml.nvmlDeviceGetCount()
        status = {
            "available": True,
            "driver_version": _ask(pynvml.nvmlSystemGetDriverVersion),
            "cuda_version": _cuda_version(),
        }
        return {"status": status, "gpus": [_gpu(index) for index in range(count)], "xids": _xids.new()}
    except pynvml.NVMLError as error:
        fault, reason = _FAULTS.get(_code(error), ("other", f"NVML answers: {error}"))
        return {"status": {"available": False, "fault": fault, "reason": reason}, "gpus": [], "xids": _xids.new()}


def _code(error: pynvml.NVMLError) -> int:
    return int(getattr(error, "value", -1))


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where this GPU or this driver has none."""
    try:
        return question(*arguments)
    except pynvml.NVMLError as error:
        if _code(error) in _PROBLEMS:
            raise
        return None


def _uuid(handle: Any) -> str:
    try:
        return str(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError:
        return ""


def _cuda_version() -> str | None:
    number = _ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _gpu(index: int) -> dict[str, Any]:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        return {"index": index, "uuid": "", "name": "", "problem": _PROBLEMS.get(_code(error), str(error))}
    found: dict[str, Any] = {"index": index, "uuid": "", "name": "unknown"}
    try:
        found["uuid"] = _uuid(handle)
        found["name"] = _ask(pynvml.nvmlDeviceGetName, handle) or "unknown"
        for part in (_identity, _memory, _load, _errors, _mig):
            found |= part(handle)
    except pynvml.NVMLError as error:
        found["problem"] = _PROBLEMS.get(_code(error), str(error))
    return found


def _identity(handle: Any) -> dict[str, Any]:
    pci = _ask(pynvml.nvmlDeviceGetPciInfo, handle)
    capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return {
        "pci_address": str(pci.busId) if pci else None,
        "compute_capability": f"{capability[0]}.{capability[1]}" if capability else None,
    }


def _memory(handle: Any) -> dict[str, Any]:
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as error:
        if _code(error) in _PROBLEMS:
            raise
        return {"shares_memory": _code(error) == pynvml.NVML_ERROR_NOT_SUPPORTED}
    return {
        "memory_total_bytes": int(memory.total),
        "memory_used_bytes": int(memory.used),
        "memory_free_bytes": int(memory.free),
    }


def _load(handle: Any) -> dict[str, Any]:
    utilisation = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    power = _ask(pynvml.nvmlDeviceGetPowerUsage, handle)
    limit = _ask(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    reasons = _ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    processes = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return {
        "utilization_percent": float(utilisation.gpu) if utilisation else None,
        "temperature_celsius": _ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        "slowdown_celsius": _ask(
            pynvml.nvmlDeviceGetTemperatureThreshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        ),
        "power_watts": power / 1000 if power is not None else None,
        "power_limit_watts": limit / 1000 if limit is not None else None,
        "graphics_clock_mhz": _ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_GRAPHICS),
        "memory_clock_mhz": _ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        "slowdowns": [name for bit, name in _SLOWDOWNS.items() if reasons & bit],
        "processes": None
        if processes is None
        else [{"pid": one.pid, "memory_bytes": one.usedGpuMemory} for one in processes],
    }


def _errors(handle: Any) -> dict[str, Any]:
    kinds = {
        "corrected": pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
        "uncorrected": pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
    }
    spans = {"": pynvml.NVML_VOLATILE_ECC, "_ever": pynvml.NVML_AGGREGATE_ECC}
    counts = {
        kind + span: _ask(pynvml.nvmlDeviceGetTotalEccErrors, handle, kinds[kind], spans[span])
        for kind in kinds
        for span in spans
    }
    remapped = _ask(pynvml.nvmlDeviceGetRemappedRows, handle)
    if remapped is None and all(count is None for count in counts.values()):
        return {}
    _, _, pending, failed = remapped or (0, 0, 0, 0)
    return {"ecc": {**counts, "remap_pending": bool(pending), "remap_failed": bool(failed)}}


def _mig(handle: Any) -> dict[str, Any]:
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    if mode is None:
        return {}
    if not mode[0]:
        return {"mig_enabled": False}
    parts: list[dict[str, Any]] = []
    for number in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if part is not None:
            name = _ask(pynvml.nvmlDeviceGetName, part) or "unknown"
            parts.append({"uuid": _uuid(part), "name": name, **_memory(part)})
    return {"mig_enabled": True, "mig_devices": parts}


if __name__ == "__main__":
    main()
