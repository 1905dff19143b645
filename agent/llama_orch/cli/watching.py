"""Following what takes long until it ends: jobs of the queen, downloads and workers of a hive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing

from rich.console import Console

from llama_orch.client import Hive, NoAnswer, Queen
from llama_orch.contract.common import Problem
from llama_orch.contract.hive import Download, DownloadStatus, Worker, WorkerStatus
from llama_orch.contract.queen import Job, JobEvent, JobStatus

from .output import Meter, err, line, printable

ENDED_JOB = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
ENDED_DOWNLOAD = {DownloadStatus.READY, DownloadStatus.FAILED, DownloadStatus.CANCELLED}
SERVING = {WorkerStatus.IDLE, WorkerStatus.BUSY}
# A queen or hive that is being upgraded or restarted is back well within this time.
RECONNECT_SECONDS = 60.0
_POLL_SECONDS = 0.2
# Ansible names a task so that it adds to each role which declares its arguments.
_ARGUMENT_CHECK = "Validating arguments against arg spec"
_OUTCOME_STYLES = {"failed": "red", "unreachable": "red", "changed": "yellow", "ok": "green", "skipped": "dim"}


async def follow_job(
    queen: Queen,
    job: Job,
    *,
    on_event: Callable[[JobEvent], None] | None = None,
    console: Console | None = None,
) -> Job:
    """Show the job's story until it ends, over restarts of the queen, and return how it ended.

    With `on_event` nothing is shown and each event goes there. Raises NoAnswer where the queen stays away.
    """
    seen = -1
    lost_at: float | None = None
    if on_event is not None:
        meter = None
    else:
        meter = Meter(f"{job.kind} {job.node_name}", tenths=False, console=console)
        meter.__enter__()
    try:
        while True:
            try:
                async with aclosing(queen.job_events(job.job_id)) as events:
                    async for event in events:
                        lost_at = None
                        if event.seq <= seen:
                            continue
                        seen = event.seq
                        if on_event is not None:
                            on_event(event)
                        elif meter is not None:
                            _show(meter, event)
                current = await queen.get_job(job.job_id)
                if current.status in ENDED_JOB:
                    return current
            except NoAnswer:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > RECONNECT_SECONDS:
                    raise
            await asyncio.sleep(_POLL_SECONDS * 5)
    finally:
        if meter is not None:
            meter.__exit__(None, None, None)


def _show(meter: Meter, event: JobEvent) -> None:
    meter.update(event.percentage, 100.0)
    if (text := told(event)) is not None:
        style = _OUTCOME_STYLES.get(event.outcome or "", "") if event.kind == "task" else "bold"
        meter.note(f"  {text}" if event.kind in ("task", "output") else text, style=style)


def told(event: JobEvent) -> str | None:
    """An event as a line; None where it is no news: a task's start, a skipped one, Ansible's own checks."""
    if event.kind in ("phase", "play", "output"):
        return event.message or event.play
    if event.kind != "task" or event.outcome in (None, "started", "skipped"):
        return None
    failed = event.outcome in ("failed", "unreachable")
    if not failed and (event.task or "").startswith(_ARGUMENT_CHECK):
        return None
    took = f"  {event.duration_s:.1f} s" if event.duration_s is not None else ""
    return f"{event.outcome:<8} {event.task}{took}" + (f": {event.message}" if failed and event.message else "")


async def follow_download(hive: Hive, begun: Download, *, console: Console | None = None) -> Download:
    """Show a download's progress until it ends, over restarts of the hive, and return how it ended."""
    download = begun
    lost_at: float | None = None
    with Meter(f"downloading {download.filename or download.model_ref}", is_bytes=True, console=console) as meter:
        while True:
            try:
                async with aclosing(hive.download_events(download.download_id)) as events:
                    async for download in events:
                        lost_at = None
                        _show_download(meter, download)
                if download.status in ENDED_DOWNLOAD:
                    return download
                download = await hive.get_download(download.download_id)
                if download.status in ENDED_DOWNLOAD:
                    return download
            except NoAnswer:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > RECONNECT_SECONDS:
                    raise
            await asyncio.sleep(_POLL_SECONDS * 5)


def _show_download(meter: Meter, download: Download) -> None:
    name = download.filename or download.model_ref
    label = "checking" if download.status == DownloadStatus.VERIFYING else "downloading"
    meter.update(download.bytes_done, download.bytes_total, f"{label} {name}")


async def follow_worker(hive: Hive, worker: Worker, *, timeout: float, console: Console | None = None) -> Worker:
    """Show a worker's way to service until it serves or has failed, and return it as it then is.

    `timeout` seconds count from the moment its model is there. Raises NoAnswer where the hive stays away.
    """
    meter = Meter(f"starting {worker.model_ref}", console=console)
    lost_at: float | None = None
    loading_since: float | None = None
    restarts = worker.restarts
    told: Problem | None = None
    with meter:
        while worker.status not in SERVING:
            if worker.status in (WorkerStatus.FAILED, WorkerStatus.STOPPED):
                return worker
            if worker.status != WorkerStatus.DOWNLOADING:
                loading_since = loading_since or time.monotonic()
                if time.monotonic() - loading_since > timeout:
                    return worker
            if worker.restarts != restarts and worker.last_error != told:
                told = worker.last_error
                meter.note(problem("it is started again", told), style="yellow")
            meter.update(worker.percentage or 0.0, 100.0, f"{worker.status} {worker.filename or worker.model_ref}")
            await asyncio.sleep(_POLL_SECONDS)
            try:
                worker = await hive.get_worker(worker.id)
                lost_at = None
            except NoAnswer:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > RECONNECT_SECONDS:
                    raise
    return worker


def tell_problems(found: Iterable[Problem]) -> None:
    """What is wrong with the queen's own files, which none of her nodes shows."""
    for one in found:
        line(problem(f"the queen: {one.code}", one), style="red", console=err)


def problem(what: str, found: Problem | None) -> str:
    """A stored failure as a person reads it: what, where, why, and what to do."""
    if found is None:
        return what
    where = f" in task '{found.task}'" if found.task else ""
    where += f" on {found.host}" if found.host else ""
    todo = f"\n{found.what_to_do}" if found.what_to_do else ""
    return printable(f"{what}{where}: {found.message}{todo}")
