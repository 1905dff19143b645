"""Whether a worker can be here: the device it asks for, memory, threads, a port."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Mapping
from typing import Any

from llama_orch.contract.devices import Condition, Gpu, GpuStatus
from llama_orch.contract.errors import BadRequest, Conflict, DoesNotFit, NotReady
from llama_orch.contract.hive import SpawnRequest
from llama_orch.contract.process import DEFAULT_CONTEXT

from ..devices import gpu_conditions, machine
from ..models.facts import ModelFacts
from ..problems import NeverFits
from ..settings import HiveSettings
from .records import RAM


def the_gpus(request: SpawnRequest, status: GpuStatus, gpus: list[Gpu], conditions: list[Condition]) -> list[Gpu]:
    """The GPUs that are meant, in their order; none for the CPU.

    Raises BadRequest where what was asked for is not here or is divided up, Conflict where something is wrong with one
    of them that no new worker should suffer from. There is no silent fallback.
    """
    if request.backend == "cpu":
        _check_cpu(request)
        return []
    # First, since it may be the reason why none is seen.
    _check_all(conditions)
    if not gpus:
        reason = status.reason or "NVML sees none"
        raise BadRequest(
            f"backend: this hive has no GPU ({reason}); it has backend cpu, device 0",
            code="no_such_device",
            there=["cpu:0"],
        )
    by_index = {gpu.index: gpu for gpu in gpus}
    for index in request.all_devices:
        if index not in by_index:
            there = [f"cuda:{gpu.index}" for gpu in gpus]
            raise BadRequest(
                f"{_field(request)}: there is no GPU {index} here; there are: {', '.join(there)} and cpu:0",
                code="no_such_device",
                there=[*there, "cpu:0"],
            )
    return _usable([by_index[index] for index in request.all_devices], conditions)


def bound_gpus(uuids: list[str], gpus: list[Gpu], conditions: list[Condition]) -> list[Gpu]:
    """The GPUs that a worker is bound to, in their order.

    Raises DoesNotFit where one is gone, and else as `the_gpus`.
    """
    _check_all(conditions)
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    if missing := [one for one in uuids if one not in by_uuid]:
        raise DoesNotFit(
            f"a GPU of this worker ({missing[0]}) is not there: see GET /api/v1/devices", code="gpu_missing"
        )
    return _usable([by_uuid[uuid] for uuid in uuids], conditions)


def check_build(request: SpawnRequest, *, cuda: bool, splits_rows: bool) -> None:
    """Raises BadRequest where the installed llama-cpp-python cannot do what was asked for."""
    if request.backend != "cuda":
        return
    if not cuda:
        raise BadRequest(
            "backend: the llama-cpp-python on this hive was built without CUDA; use backend cpu",
            code="backend_unavailable",
            there=["cpu:0"],
        )
    if request.split == "row" and not splits_rows:
        raise BadRequest(
            "split_mode: the CUDA backend of the llama-cpp-python on this hive does not split by rows; use layer",
            code="backend_unavailable",
        )


def _field(request: SpawnRequest) -> str:
    return "device" if request.devices is None else "devices"


def _check_cpu(request: SpawnRequest) -> None:
    if request.devices is not None:
        raise BadRequest("devices: goes with backend cuda only")
    if request.device:
        raise BadRequest(f"device: the CPU is device 0, not {request.device}", code="no_such_device")
    if request.gpu_layers:
        raise BadRequest("gpu_layers: goes with backend cuda only")


def _check_all(conditions: list[Condition]) -> None:
    _check_conditions("this hive's GPUs take", gpu_conditions.of_all(conditions))


def _usable(chosen: list[Gpu], conditions: list[Condition]) -> list[Gpu]:
    for gpu in chosen:
        _check_conditions(f"GPU {gpu.index} takes", gpu_conditions.of_device(conditions, gpu))
        if gpu.mig_enabled:
            raise BadRequest(
                f"device: GPU {gpu.index} is divided up (MIG), and a worker would get one part of it at most: use "
                f"another, or make it whole again (nvidia-smi -i {gpu.index} -mig 0, then reset it)",
                code="gpu_divided",
            )
    return chosen


def _check_conditions(who_takes: str, wrong: list[Condition]) -> None:
    if wrong:
        raise Conflict(
            f"device: {who_takes} no new workers: {wrong[0].message}; {wrong[0].what_to_do}",
            code="device_cordoned",
            conditions=[one.type.value for one in wrong],
        )


def tensor_split(request: SpawnRequest, available: list[int]) -> list[float] | None:
    """The part of the model that each of several devices gets, None on one.

    As was asked, or as llama.cpp does by itself: in proportion to the bytes that are available on each.
    """
    if request.split is None:
        return None
    shares = request.tensor_split or [float(number) for number in available]
    whole = sum(shares)
    return [round(share / whole, 6) if whole else 1 / len(shares) for share in shares]


def context(asked: int | None, facts: ModelFacts) -> int:
    """Tokens of context per slot. Raises BadRequest where it is more than the model was made for."""
    if asked is None:
        return min(facts.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    if facts.context_length and asked > facts.context_length:
        raise BadRequest(f"ctx_per_slot: {asked} is more than the {facts.context_length} that the model was made for")
    return asked


def free_memory(settings: HiveSettings, gpu: Gpu | None, spoken_for: Mapping[str, int]) -> tuple[int, str]:
    """Bytes that a new worker on the GPU, or on the CPU, may use, and of what.

    `spoken_for` is what others will still take of each memory.
    """
    if gpu is None or gpu.shares_memory:
        available = machine.memory().available_bytes - settings.reserve_ram_bytes - spoken_for.get(RAM, 0)
        return max(0, available), "memory"
    available = (gpu.memory_free_bytes or 0) - settings.reserve_gpu_bytes - spoken_for.get(gpu.uuid, 0)
    return max(0, available), f"memory of GPU {gpu.index}"


def whole_memory(settings: HiveSettings, gpu: Gpu | None) -> int | None:
    """Bytes that a worker alone on the GPU, or on the CPU, may use; None where nobody knows."""
    if gpu is None or gpu.shares_memory:
        return machine.memory().total_bytes - settings.reserve_ram_bytes
    return None if gpu.memory_total_bytes is None else gpu.memory_total_bytes - settings.reserve_gpu_bytes


def check_memory(
    needed: int, available: int, of_what: str, *, whole: int | None = None, device: int | None = None
) -> None:
    """Raises DoesNotFit, with both numbers and the GPU that is too full; NeverFits where it is more than `whole`."""
    if needed > available:
        which: dict[str, Any] = {} if device is None else {"device": device}
        kind = NeverFits if whole is not None and needed > whole else DoesNotFit
        raise kind(
            f"the worker needs about {needed} bytes and {available} bytes of {of_what} may be used: "
            "stop another worker, or ask for fewer slots, less ctx_per_slot or a smaller quantisation",
            needed_bytes=needed,
            available_bytes=available,
            **which,
        )


def threads(asked: int | None, used: int) -> int:
    """CPU threads for a worker beside others that use `used`.

    llama.cpp's threads spin: more of them than cores slow decoding many times over. One core is left for what serves.
    """
    return asked or max(1, machine.cores() - 1 - used)


def free_port(settings: HiveSettings, taken: Iterable[int], *, prefer: int | None = None) -> int:
    """A port that nobody uses. Raises NotReady where there is none."""
    excluded = {*taken, settings.port, 8081}
    candidates = list(range(settings.worker_port_min, settings.worker_port_max + 1))
    if prefer in candidates:
        candidates.insert(0, prefer)
    for port in candidates:
        if port not in excluded and _is_free(settings.host, port):
            return port
    raise NotReady(
        f"all ports from {settings.worker_port_min} to {settings.worker_port_max} are in use: stop a worker, "
        "or widen worker_port_min and worker_port_max",
        code="no_free_port",
    )


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the worker does: without it, a port that just served would be refused for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
    return True
