"""How workers end: by us, in three steps; or by themselves, and what is then known about it."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from llama_orch.base import files
from llama_orch.contract.common import Problem
from llama_orch.contract.process import ENDED_FILE, FAILURE_FILE, SPEC_FILE, WorkerEnded, WorkerFailure, WorkerSpec

from ..looking import look
from . import logs, process_table

KILL_TIMEOUT_S = 20.0
BEFORE_READY = " while it loaded its model or tried it out, before it was ready"
WHILE_SERVING = " while it was serving"
WHILE_ALONE = " while the agent was not running"
MOST_CHARACTERS = 1000
CRASHES_IN_A_ROW = 5
ENOUGH_SERVICE_S = 300.0
_CODE = re.compile(r"[a-z_]{1,64}")
_LOOK_S = 0.1
_SCAN_S = 1.0
_LOG = "its log is in the hive's log_dir"
# What to do where a signal ended a worker, by the signal's name.
ADVICE = {
    "SIGKILL": "if nobody killed it, the kernel did for want of memory: dmesg says so",
    "SIGILL": (
        "the processor, or the hypervisor above it, refuses an instruction that the engine's library uses: GET "
        "/api/v1/devices shows the engine's self-test; build the wheelhouse anew with the newest llama-orch "
        "(`make wheelhouse`) and provision the machine again"
    ),
    "SIGSEGV": (
        "a fault of the engine or of a driver: try another quantisation of the model, or one slot; with CUDA look at "
        "the driver (nvidia-smi, dmesg); report it with the log"
    ),
    "SIGBUS": (
        "the model's file was cut short while it was in use, or its disk fails: remove the model and pull it again; "
        "dmesg tells of a disk"
    ),
    "SIGABRT": (
        "llama.cpp gave up, for a reason that the last lines of the log give: try another quantisation of the model or "
        "a newer llama-orch; report it with the log"
    ),
}


Reason = Literal["hung", "ready_timeout"]
# And where the hive did.
ADVICE_BY_US: dict[Reason, str] = {
    "hung": (
        "it is started again by itself; where that repeats, dmesg tells of a driver or a disk that hangs; a machine "
        "that swaps needs fewer workers or smaller models"
    ),
    "ready_timeout": "a slow disk or a large model needs more: raise ready_timeout_s",
}


class WillNotEnd(Exception):
    """Processes survive SIGKILL: the kernel holds them, as a driver or a disk that hangs does."""


async def end(state_dir: Path, worker_id: str, *, drain_s: float, term_s: float) -> None:
    """End every process of a worker: drain, SIGTERM, SIGKILL, each with its time. Raises WillNotEnd."""
    steps = [(signal.SIGTERM, term_s), (signal.SIGKILL, KILL_TIMEOUT_S)]
    if drain_s > 0:
        steps.insert(0, (signal.SIGUSR1, drain_s))
    for number, timeout in steps:
        if await _signalled(state_dir, worker_id, number, timeout):
            return
    raise WillNotEnd(f"worker {worker_id} survives SIGKILL")


async def _signalled(state_dir: Path, worker_id: str, number: signal.Signals, timeout: float) -> bool:
    """Send one signal to all there are and all that appear meanwhile; whether all are gone before the time-out."""
    deadline = time.monotonic() + timeout
    told: set[process_table.Process] = set()
    while True:
        alive = await look(_tell, state_dir, worker_id, number, told)
        if not alive:
            return True
        look_again = min(deadline, time.monotonic() + _SCAN_S)
        while (  # noqa: ASYNC110  /proc tells no events
            lives := await look(_any_lives, alive)
        ) and time.monotonic() < look_again:
            await asyncio.sleep(_LOOK_S)
        if lives and time.monotonic() >= deadline:
            return False


def _tell(
    state_dir: Path, worker_id: str, number: signal.Signals, told: set[process_table.Process]
) -> list[process_table.Process]:
    """Send the signal to those of its processes that were not told; answers all that live."""
    alive = process_table.find(state_dir).get(worker_id, [])
    for found in alive:
        # The shim is to see how its worker ends; it is killed only where it outlives that.
        if found not in told and (not found.is_shim or len(alive) == 1):
            found.send(number)
            told.add(found)
    return alive


def _any_lives(processes: list[process_table.Process]) -> bool:
    return any(found.lives() for found in processes)


def how_it_ended(folder: Path) -> WorkerEnded | None:
    """What the shim wrote down; None where it could not."""
    try:
        return WorkerEnded.model_validate(files.read_json(folder / ENDED_FILE))
    except ValidationError:
        return None


def known_failure(folder: Path) -> WorkerFailure | None:
    """The reason that the worker itself gave, in a length that the API shows."""
    try:
        found = WorkerFailure.model_validate(files.read_json(folder / FAILURE_FILE))
    except ValidationError:
        return None
    if not _CODE.fullmatch(found.code):
        return None
    return found.model_copy(
        update={"message": found.message[:MOST_CHARACTERS], "what_to_do": found.what_to_do[:MOST_CHARACTERS]}
    )


def why(folder: Path, log_file: Path, ended: WorkerEnded | None, when: str, *, by_us: Reason | None) -> Problem:
    """A crash, with all that the worker's folder and its log tell of it. `by_us`: why the hive ended it."""
    gave_up = ended is not None and ended.signal == signal.SIGABRT
    said = logs.last_words(log_file, folder.name) if gave_up else ""
    return describe(ended, when, _order(folder), by_us=by_us, said=said)


def _order(folder: Path) -> WorkerSpec | None:
    """What the worker was told to do; None where that is not there or of another version."""
    try:
        return WorkerSpec.model_validate_json(files.read_bytes(folder / SPEC_FILE))
    except (OSError, ValidationError):
        return None


def describe(
    ended: WorkerEnded | None,
    when: str,
    spec: WorkerSpec | None = None,
    *,
    by_us: Reason | None = None,
    said: str = "",
) -> Problem:
    """A crash as the API shows it. `said` is what llama.cpp said where it gave up."""
    if ended is None:
        how, code = "ended, and nobody saw how", "crashed"
    elif ended.signal is not None:
        how, code = f"was ended by signal {ended.signal} ({_signal_name(ended.signal)})", "killed"
    else:
        how, code = f"exited with code {ended.exit_code}", "crashed"
    message = f"the worker's process {how}{when}"
    if spec is not None:
        message += f" (model {spec.model_name}, {_engine(spec)})"
    if said:
        message += f": {said}"
    if by_us is not None:
        advice = ADVICE_BY_US[by_us]
    else:
        advice = None if ended is None or ended.signal is None else ADVICE.get(_signal_name(ended.signal))
    return Problem(code=by_us or code, message=message, what_to_do="; ".join(filter(None, (advice, _LOG))))


def _engine(spec: WorkerSpec) -> str:
    if spec.backend == "cuda":
        devices = ", ".join(map(str, spec.devices))
        return f"backend cuda on device{'s' if len(spec.devices) > 1 else ''} {devices}"
    return spec.cpu_library or "the engine's CPU library"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def streak_after(streak: int, served_s: float) -> int:
    """Crashes in a row, counting the one that just happened after `served_s` seconds of service."""
    return 1 if served_s >= ENOUGH_SERVICE_S else streak + 1


def gives_up(streak: int) -> bool:
    """Whether that many crashes in a row are enough."""
    return streak >= CRASHES_IN_A_ROW
