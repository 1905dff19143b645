"""What is wrong with the GPUs, from what NVML says: pure.

What an Xid means is NVIDIA's "Xid Errors" catalogue: docs.nvidia.com/deploy/xid-errors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from llama_orch.contract.devices import Condition, ConditionType, Gpu, GpuFault, GpuStatus, Remedy, Xid


@dataclass(frozen=True)
class _Advice:
    text: str
    remedy: Remedy


_RESET = _Advice(
    "run the remedy reset_gpu, or stop the workers on it and reset it (nvidia-smi --gpu-reset -i INDEX)",
    Remedy.RESET_GPU,
)
_REPLACE = _Advice("stop using it and have it replaced", Remedy.COLLECT_GPU_REPORT)
_REPORT = _Advice(
    "look at the kernel's log (journalctl -k), and at its power cables; the remedy collect_gpu_report gathers what "
    "NVIDIA's support asks for",
    Remedy.COLLECT_GPU_REPORT,
)
_REBOOT = _Advice("reboot the machine; if it comes again, check power, cooling and seating", Remedy.REBOOT)
_BRIDGE = _Advice("see that the bridge is seated; reset the GPU (remedy reset_gpu)", Remedy.RESET_GPU)
_WATCH = _Advice("watch it; have it replaced if they go on", Remedy.COLLECT_GPU_REPORT)
_COOL = _Advice(
    "see to its cooling: it slows itself down, and switches itself off when that does not help",
    Remedy.COLLECT_GPU_REPORT,
)
_RELOAD = _Advice("run the remedy reload_driver, or reboot the machine", Remedy.RELOAD_DRIVER)
_LOOK = _Advice(
    "look at the kernel's log (journalctl -k); run the remedy reload_driver, or reboot the machine",
    Remedy.RELOAD_DRIVER,
)


@dataclass(frozen=True)
class _Meaning:
    text: str
    advice: _Advice
    cordons: bool = True


# Those that one program alone suffers from (13, 31, 43, 45 and the like) say nothing of the GPU and are not here.
_XIDS = {
    48: _Meaning("an uncorrectable memory error", _RESET),
    61: _Meaning("its controller stopped", _RESET),
    62: _Meaning("its controller halted", _RESET),
    64: _Meaning("bad memory could not be retired", _REPLACE),
    74: _Meaning("an error of NVLink", _BRIDGE),
    79: _Meaning("it fell off the bus", _REBOOT),
    92: _Meaning("many corrected memory errors", _WATCH, cordons=False),
    95: _Meaning("an uncontained memory error", _RESET),
    119: _Meaning("its system processor does not answer", _RESET),
    120: _Meaning("its system processor failed", _RESET),
    140: _Meaning("an unrecovered memory error", _RESET),
}


def find(status: GpuStatus, gpus: list[Gpu], xids: list[Xid], known: list[Gpu]) -> list[Condition]:
    """All that is wrong now. `known`: the GPUs that were ever seen."""
    if not status.available:
        return _of_driver(status, known)
    there = {gpu.uuid for gpu in gpus}
    found = [_missing(gpu) for gpu in known if gpu.uuid not in there]
    for gpu in gpus:
        found += _of_gpu(gpu)
        found += _of_xids(gpu, xids)
    return found


def of_all(conditions: list[Condition]) -> list[Condition]:
    """Those for which no new worker may be started on any GPU."""
    return [one for one in conditions if one.cordons and one.uuid is None]


def of_device(conditions: list[Condition], gpu: Gpu) -> list[Condition]:
    """Those for which no new worker may be started on the GPU."""
    return [one for one in conditions if one.cordons and (one.uuid is None or one.uuid == gpu.uuid)]


def _of_driver(status: GpuStatus, known: list[Gpu]) -> list[Condition]:
    reason = status.reason or "the NVIDIA driver does not answer"
    if status.fault is GpuFault.VERSION_MISMATCH:
        message = f"the driver was updated, and the kernel still runs the one before ({reason})"
        return [_of_all(ConditionType.DRIVER_MISMATCH, message, _RELOAD)]
    # A machine without a driver has nothing wrong with it unless it once had GPUs.
    if status.fault is GpuFault.NO_ANSWER or known:
        return [_of_all(ConditionType.DRIVER_SILENT, reason, _LOOK)]
    return []


def _of_all(kind: ConditionType, message: str, advice: _Advice) -> Condition:
    return Condition(type=kind, message=message, what_to_do=advice.text, cordons=True, remedy=advice.remedy)


def _missing(gpu: Gpu) -> Condition:
    return Condition(
        type=ConditionType.GPU_MISSING,
        uuid=gpu.uuid,
        index=None,
        message=f"{gpu.name} ({gpu.uuid}) was there and is not any more",
        what_to_do=_REBOOT.text,
        cordons=True,
        remedy=_REBOOT.remedy,
    )


def _condition(gpu: Gpu, kind: ConditionType, message: str, advice: _Advice, *, cordons: bool = True) -> Condition:
    return Condition(
        type=kind,
        uuid=gpu.uuid,
        index=gpu.index,
        message=f"GPU {gpu.index} ({gpu.name}): {message}",
        what_to_do=advice.text.replace("INDEX", str(gpu.index)),
        cordons=cordons,
        remedy=advice.remedy,
    )


def _of_gpu(gpu: Gpu) -> list[Condition]:
    condition = functools.partial(_condition, gpu)
    if gpu.problem == "reset_required":
        return [condition(ConditionType.RESET_NEEDED, "it must be reset before it computes again", _RESET)]
    if gpu.problem == "gpu_lost":
        return [condition(ConditionType.GPU_LOST, "the driver cannot reach it any more", _REBOOT)]
    if gpu.problem is not None:
        return [condition(ConditionType.GPU_UNREADABLE, f"NVML tells nothing of it: {gpu.problem}", _REPORT)]
    found: list[Condition] = []
    ecc = gpu.ecc
    if ecc and ecc.uncorrected:
        found.append(condition(ConditionType.ECC_UNCORRECTED, f"{ecc.uncorrected} uncorrectable memory errors", _RESET))
    if ecc and ecc.remap_failed:
        found.append(condition(ConditionType.ROW_REMAP_FAILED, "no spare memory is left for what is bad", _REPLACE))
    elif ecc and ecc.remap_pending:
        message = "spare memory takes the place of what is bad at the next reset"
        found.append(condition(ConditionType.ROW_REMAP_PENDING, message, _RESET, cordons=False))
    hot = gpu.slowdown_celsius is not None and (gpu.temperature_celsius or 0) >= gpu.slowdown_celsius
    if hot or "hardware_thermal" in gpu.slowdowns:
        degrees = "too hot" if gpu.temperature_celsius is None else f"{gpu.temperature_celsius:.0f} °C"
        found.append(condition(ConditionType.OVER_TEMPERATURE, degrees, _COOL))
    return found


def _of_xids(gpu: Gpu, xids: list[Xid]) -> list[Condition]:
    found: dict[int, Condition] = {}
    for xid in xids:
        meaning = _XIDS.get(xid.code)
        if xid.uuid == gpu.uuid and meaning is not None:
            message = f"Xid {xid.code} at {xid.at:%Y-%m-%d %H:%M:%S}, {meaning.text}"
            found[xid.code] = _condition(gpu, ConditionType.XID, message, meaning.advice, cordons=meaning.cordons)
    return list(found.values())
