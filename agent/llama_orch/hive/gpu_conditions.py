"""What is wrong with the GPUs, from what NVML says: pure.

What an Xid means is NVIDIA's "Xid Errors" catalogue: docs.nvidia.com/deploy/xid-errors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from llama_orch.contract.devices import Condition, ConditionType, Gpu, GpuFault, GpuStatus, Xid

_RESET = "stop the workers on it, then reset it (nvidia-smi --gpu-reset -i INDEX) or reboot the machine"
_REPLACE = "stop using it and have it replaced"
_REBOOT = "reboot the machine; if it comes again, check power, cooling and seating"


@dataclass(frozen=True)
class _Meaning:
    text: str
    what_to_do: str
    cordons: bool = True


# Those that one program alone suffers from (13, 31, 43, 45 and the like) say nothing of the GPU and are not here.
_XIDS = {
    48: _Meaning("an uncorrectable memory error", _RESET),
    61: _Meaning("its controller stopped", _RESET),
    62: _Meaning("its controller halted", _RESET),
    64: _Meaning("bad memory could not be retired", _REPLACE),
    74: _Meaning("an error of NVLink", "see that the bridge is seated; reset the GPU (nvidia-smi --gpu-reset)"),
    79: _Meaning("it fell off the bus", _REBOOT),
    92: _Meaning("many corrected memory errors", "watch it; have it replaced if they go on", cordons=False),
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
        what = "reboot the machine: the driver was updated, and the kernel still runs the one before"
        return [Condition(type=ConditionType.DRIVER_MISMATCH, message=reason, what_to_do=what, cordons=True)]
    # A machine without a driver has nothing wrong with it unless it once had GPUs.
    if status.fault is GpuFault.NO_ANSWER or known:
        what = "look at the kernel's log (journalctl -k), and reboot the machine if the driver does not come back"
        return [Condition(type=ConditionType.DRIVER_SILENT, message=reason, what_to_do=what, cordons=True)]
    return []


def _missing(gpu: Gpu) -> Condition:
    return Condition(
        type=ConditionType.GPU_MISSING,
        uuid=gpu.uuid,
        index=None,
        message=f"{gpu.name} ({gpu.uuid}) was there and is not any more",
        what_to_do="reboot the machine; if it stays away, check power, cooling and seating",
        cordons=True,
    )


def _condition(gpu: Gpu, kind: ConditionType, message: str, what: str, *, cordons: bool = True) -> Condition:
    return Condition(
        type=kind,
        uuid=gpu.uuid,
        index=gpu.index,
        message=f"GPU {gpu.index} ({gpu.name}): {message}",
        what_to_do=what.replace("INDEX", str(gpu.index)),
        cordons=cordons,
    )


def _of_gpu(gpu: Gpu) -> list[Condition]:
    condition = functools.partial(_condition, gpu)
    if gpu.problem == "reset_required":
        return [condition(ConditionType.RESET_NEEDED, "it must be reset before it computes again", _RESET)]
    if gpu.problem is not None:
        return [condition(ConditionType.GPU_LOST, "the driver cannot reach it any more", _REBOOT)]
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
        what = "see to its cooling: it slows itself down, and switches itself off when that does not help"
        found.append(condition(ConditionType.OVER_TEMPERATURE, degrees, what))
    return found


def _of_xids(gpu: Gpu, xids: list[Xid]) -> list[Condition]:
    found: dict[int, Condition] = {}
    for xid in xids:
        meaning = _XIDS.get(xid.code)
        if xid.uuid == gpu.uuid and meaning is not None:
            message = f"Xid {xid.code} at {xid.at:%Y-%m-%d %H:%M:%S}, {meaning.text}"
            found[xid.code] = _condition(gpu, ConditionType.XID, message, meaning.what_to_do, cordons=meaning.cordons)
    return list(found.values())
