"""Starts a worker's process, and finds one that an earlier run of the agent started."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import time
import uuid
from pathlib import Path

from llama_orch.base import files
from llama_orch.base.processes import interpreter
from llama_orch.base.tokens import Token
from llama_orch.contract.process import ENDED_FILE, FAILURE_FILE, SPEC_FILE, WorkerEnded, WorkerSpec

from ..child_environment import child_environment
from ..looking import look
from ..problems import Failed
from ..settings import HiveSettings
from ..shim import LAUNCH_FILE, PROCESS_FILE, temporary_name
from . import ending, process_table
from .records import WorkerRecord

SHIM_START_S = 20.0
ENDED_WRITTEN_S = 3.0
_LOOK_S, _LOOK_SLOWER, _LOOK_MOST_S = 0.02, 1.5, 0.2
# What ends by itself, or when somebody made room.
_PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE}
)


def clear(folder: Path) -> None:
    """Take away what an earlier process of this worker left."""
    for name in (PROCESS_FILE, ENDED_FILE, FAILURE_FILE):
        (folder / name).unlink(missing_ok=True)
    for name in (PROCESS_FILE, ENDED_FILE):
        (folder / temporary_name(name)).unlink(missing_ok=True)


def log_file(settings: HiveSettings, worker_id: str) -> Path:
    """Where all processes of a worker write what they say, one after the other."""
    return settings.log_dir / f"worker-{worker_id}.log"


def start(
    record: WorkerRecord,
    folder: Path,
    model: Path,
    settings: HiveSettings,
    token: Token,
    *,
    cpu_library: str | None,
) -> subprocess.Popen[bytes]:
    """Write the order and start the shim. Raises Failed, with `retry` where it may work later.

    All that ran for this worker before has ended; a shim that was started for it and never came to run is refused.
    """
    request = record.request
    spec = WorkerSpec(
        worker_id=record.id,
        model_path=str(model),
        model_name=record.filename or model.name,
        model_ref=str(request.ref),
        host=settings.host,
        port=record.port or 0,
        backend=request.backend,
        devices=request.all_devices,
        device_uuids=record.device_uuids,
        split_mode=request.split,
        tensor_split=record.tensor_split,
        slots=request.slots,
        ctx_per_slot=record.ctx_per_slot,
        threads=record.threads,
        gpu_layers=request.gpu_layers,
        cpu_library=cpu_library,
        gateways=settings.gateways,
        cors_origins=settings.cors_origins,
        reuse_across_scopes=request.reuse_across_scopes,
        confined=settings.confine_workers,
        record=record.model_dump(mode="json"),
    )
    launch = uuid.uuid4().hex
    try:
        clear(folder)
        files.write_text(folder / LAUNCH_FILE, launch)
        files.write_text(folder / SPEC_FILE, spec.model_dump_json())
        return start_shim(folder, launch, log_file(settings, record.id), token)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise Failed(
            "cannot_start",
            f"the worker cannot be started: {error.strerror}{where}",
            "see that the disks of state_dir and log_dir have room and can be written to",
            retry=error.errno in _PASSING,
        ) from None


def start_shim(folder: Path, launch: str, log_file: Path, token: Token) -> subprocess.Popen[bytes]:
    """Start a worker under its shim and return the shim. Raises OSError where that cannot be.

    `launch` is what the folder's file of that name holds.

    The token goes through a pipe that the worker reads to its end, and those that are taken as well in lines behind it:
    no argument, variable or file shows them.
    """
    (folder / "tmp").mkdir(mode=0o700, exist_ok=True)
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, "\n".join(token.reveal_all()).encode())
    finally:
        os.close(write_end)
    python = interpreter()
    worker = [python, "-P", "-m", process_table.WORKER, "--spec", str(folder / SPEC_FILE), "--token-fd", str(read_end)]
    try:
        with log_file.open("ab") as output:
            return subprocess.Popen(
                [python, "-P", "-m", process_table.SHIM, str(folder), launch, "--", *worker],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(read_end,),
                cwd=folder,
                env=child_environment(),
                start_new_session=True,
            )
    finally:
        os.close(read_end)


async def written_down(folder: Path, shim: subprocess.Popen[bytes]) -> process_table.Process | None:
    """The process that the shim wrote down, waited for while the shim runs.

    None where it started none, and where that took too long: then whatever it started is to be ended.
    """
    deadline = time.monotonic() + SHIM_START_S
    pause = _LOOK_S
    while (found := await look(process_table.recorded, folder)) is None and time.monotonic() < deadline:
        if shim.poll() is not None:
            return await look(process_table.recorded, folder)
        await asyncio.sleep(pause)
        pause = min(pause * _LOOK_SLOWER, _LOOK_MOST_S)
    return found


async def left_over(folder: Path, state_dir: Path) -> process_table.Process | None:
    """The process that an earlier run of the agent started, whether it lives or not; None where there is none.

    What lives is believed before what is written: a damaged file ends no worker that serves.
    """
    deadline = time.monotonic() + SHIM_START_S
    while True:
        written = await look(process_table.recorded, folder)
        alive = (await look(process_table.find, state_dir)).get(folder.name, [])
        workers = [found for found in alive if not found.is_shim]
        if written in workers:
            return written
        if workers:
            return max(workers, key=lambda found: found.start_time)
        # A shim alone is about to start its worker, or to write how it ended.
        if not alive or time.monotonic() > deadline:
            return written
        await asyncio.sleep(_LOOK_S)


async def how_it_ended(folder: Path) -> WorkerEnded | None:
    """How a process that is gone ended; the shim may need a moment to write it down."""
    deadline = time.monotonic() + ENDED_WRITTEN_S
    pause = _LOOK_S
    while (ended := await look(ending.how_it_ended, folder)) is None:
        if time.monotonic() >= deadline:
            break
        await asyncio.sleep(pause)
        pause = min(pause * _LOOK_SLOWER, _LOOK_MOST_S)
    return ended
