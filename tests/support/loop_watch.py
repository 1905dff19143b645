"""Watches the event loop of a service that a test starts: what blocks it, and for how long it is held up.

`environment(folder)` makes any Python that starts with it load this file as `sitecustomize`; only the service itself is
watched, from `begin` on. `report` tells what was seen until then.

Counted as blocking is what waits for a disk, another process or the network: opening files, looking through folders,
flushing, starting processes, binding and connecting. Held up is the loop for as long as one callback takes, less the
time in which the kernel gave its thread no processor: on a loaded machine that says nothing of the code.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

WATCHED = "llama_orch.hive"
BEGIN, ASK, ANSWER = "loop-begin", "loop-ask", "loop-report.json"
_BLOCKING = {
    *("subprocess.Popen", "os.posix_spawn", "os.fork", "os.listdir", "os.scandir", "os.remove", "os.rename"),
    *("os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod", "os.utime"),
    *("socket.bind", "socket.getaddrinfo", "socket.gethostbyname"),
}
_CALLS = ("fsync", "fdatasync", "statvfs", "stat", "sendfile")


class _Watch:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop_thread = threading.get_ident()
        self._begun = self._inside = False
        self._blocking: Counter[str] = Counter()
        self._held_up_ms: list[tuple[float, str]] = []
        self._schedstat = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    def install(self) -> None:
        sys.addaudithook(self._on_event)
        for name in _CALLS:
            setattr(os, name, self._noted(name, getattr(os, name)))
        asyncio.events.Handle._run = self._timed(asyncio.events.Handle._run)  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=self._look, daemon=True).start()

    def _timed(self, run: Callable[[asyncio.Handle], None]) -> Callable[[asyncio.Handle], None]:
        def timed(self_: asyncio.Handle) -> None:
            waited, began = self._waited(), time.perf_counter()
            run(self_)
            took = (time.perf_counter() - began) * 1000 - (self._waited() - waited)
            if self._begun:
                self._held_up_ms.append((took, repr(self_)[:200] if took > 10 else ""))

        return timed

    def _waited(self) -> float:
        """Milliseconds in which the thread could have run and had no processor."""
        return int(os.pread(self._schedstat, 100, 0).split()[1]) / 1e6

    def _on_event(self, event: str, arguments: Any) -> None:
        if not self._begun or self._inside or threading.get_ident() != self._loop_thread:
            return
        if event == "open" and not isinstance(arguments[0], int):
            self._note(f"open {arguments[0]!s}")
        elif event in _BLOCKING or (event == "socket.connect" and arguments[0].getblocking()):
            self._note(event)

    def _noted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:
            if self._begun and not self._inside and threading.get_ident() == self._loop_thread:
                self._note(f"os.{name}")
            return call(*arguments, **options)

        return noted

    def _note(self, what: str) -> None:
        self._inside = True
        ours = [frame for frame in traceback.extract_stack() if "llama_orch" in frame.filename]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(ours[-3:]))
        self._blocking[f"{what} at {where}"] += 1
        self._inside = False

    def _look(self) -> None:
        while True:
            time.sleep(0.05)
            self._begun = self._begun or (self._folder / BEGIN).exists()
            if (self._folder / ASK).exists():
                (self._folder / ASK).unlink()
                partial = self._folder / f"{ANSWER}.partial"
                partial.write_text(json.dumps(self._report()))
                partial.rename(self._folder / ANSWER)

    def _report(self) -> dict[str, Any]:
        times = sorted(self._held_up_ms)
        return {
            "blocking": dict(self._blocking),
            "callbacks": len(times),
            "p99_ms": times[len(times) * 99 // 100][0],
            "p999_ms": times[len(times) * 999 // 1000][0],
            "longest": times[-10:],
        }


def environment(folder: Path, *paths: Path) -> dict[str, str]:
    """What makes a service load this file; `paths` is where its own code is."""
    (folder / "sitecustomize.py").write_bytes(Path(__file__).read_bytes())
    return {"PYTHONPATH": os.pathsep.join(map(str, (folder, *paths)))}


def begin(folder: Path) -> None:
    """Watch from now on."""
    (folder / BEGIN).touch()


async def report(folder: Path) -> dict[str, Any]:
    """What was seen."""
    (folder / ASK).touch()
    async with asyncio.timeout(30):
        while not (folder / ANSWER).exists():  # noqa: ASYNC110  a file tells no events
            await asyncio.sleep(0.05)
    return json.loads((folder / ANSWER).read_text())


if __name__ == "sitecustomize" and WATCHED in sys.orig_argv:
    _Watch(Path(__file__).parent).install()
