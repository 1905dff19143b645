"""How workers end: by us, in three steps; or by themselves, and what is then known about it."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from pydantic import ValidationError

from llama_orch.contract.common import Problem
from llama_orch.contract.process import ENDED_FILE, FAILURE_FILE, WorkerEnded, WorkerFailure

from . import process
from .atomic import read_json

KILL_TIMEOUT_S = 20.0
_LOOK_S = 0.1
_SCAN_S = 1.0


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
    told: set[process.Process] = set()
    while True:
        alive = (await asyncio.to_thread(process.find, state_dir)).get(worker_id, [])
        for found in alive:
            # The shim is to see how its worker ends; it is killed only where it outlives that.
            if found not in told and (not found.is_shim or len(alive) == 1):
                found.send(number)
                told.add(found)
        if not alive:
            return True
        look_again = min(deadline, time.monotonic() + _SCAN_S)
        while any(found.lives() for found in alive) and time.monotonic() < look_again:  # noqa: ASYNC110  /proc tells no events
            await asyncio.sleep(_LOOK_S)
        if time.monotonic() >= deadline and any(found.lives() for found in alive):
            return False


def how_it_ended(folder: Path) -> WorkerEnded | None:
    """What the shim wrote down; None where it could not."""
    try:
        return WorkerEnded.model_validate(read_json(folder / ENDED_FILE))
    except ValidationError:
        return None


def known_failure(folder: Path) -> WorkerFailure | None:
    """The reason that the worker itself gave."""
    try:
        return WorkerFailure.model_validate(read_json(folder / FAILURE_FILE))
    except ValidationError:
        return None


def describe(ended: WorkerEnded | None, when: str) -> Problem:
    """A crash as the API shows it."""
    if ended is None:
        how, code = "ended, and nobody saw how", "crashed"
    elif ended.signal is not None:
        how, code = f"was ended by signal {ended.signal} ({_signal_name(ended.signal)})", "killed"
    else:
        how, code = f"exited with code {ended.exit_code}", "crashed"
    hint = "its log is in the hive's log_dir"
    if ended is not None and ended.signal == signal.SIGKILL:
        hint = "if nobody killed it, the kernel did for want of memory: dmesg says so; " + hint
    return Problem(code=code, message=f"the worker's process {how}{when}", what_to_do=hint)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
