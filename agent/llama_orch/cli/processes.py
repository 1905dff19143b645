"""Processes of a home: found by what they carry in their environment, and ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llama_orch.base.processes import is_in_this_container, start_time


def marked(marker: str) -> Iterator[tuple[int, list[str]]]:
    """Pid and argv of each living process, but this one, whose environment holds `marker` (`NAME=value`).

    Those of other users and of containers are none: a path there is another folder's.
    """
    wanted = marker.encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        # It may end while we look, or be another user's.
        with suppress(OSError):
            if (
                wanted in (folder / "environ").read_bytes().split(b"\0")
                and folder.stat().st_uid == os.geteuid()
                and is_in_this_container(folder)
                and start_time(int(folder.name))
            ):
                argv = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield int(folder.name), argv


def end(pids: list[int], *, grace_s: float) -> list[int]:
    """TERM, and after `grace_s` seconds KILL; returns those that had to be killed. Blocks until all are gone."""
    known = {pid: start_time(pid) for pid in pids if start_time(pid)}

    def alive() -> list[int]:
        return [pid for pid, began in known.items() if start_time(pid) == began]

    stubborn: list[int] = []
    for number, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for pid in alive():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + seconds
        while alive() and time.monotonic() < until:
            time.sleep(0.05)
        if number == signal.SIGTERM:
            stubborn = alive()
    return stubborn
