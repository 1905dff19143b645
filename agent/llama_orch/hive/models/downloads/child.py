"""A download's own process: takes its order on standard input, tells its progress on standard output.

Each line is one of `lines.py`. It ends when its standard input does, so an agent that dies leaves none behind.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
import traceback

from ...problems import Failed
from ..hub import hub
from ..hub.description import FetchOrder
from .lines import Failure, Line, Mark, Progress

REPORT_EVERY_S = 0.2
# Of what it writes to, not of addresses: files go through it in pieces, whatever the hub sends.
MEMORY_BYTES = 1024 * 1024 * 1024


def main() -> int:
    """Carry it out; returns 0 where the model is ready."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    order = FetchOrder.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_agent, daemon=True).start()
    _say(Mark(event="started"))
    try:
        hub.fetch(order, _Reporter())
    except Failed as failed:
        _say(Failure.of(failed))
        return 1
    except Exception as error:
        traceback.print_exc()
        said = f"the download failed: {type(error).__name__}"
        _say(Failure.of(Failed("download_failed", said, "the hive's log has the details", retry=True)))
        return 1
    _say(Mark(event="ready"))
    return 0


class _Reporter:
    """Passes on a report now and then, and every one that begins or ends something."""

    def __init__(self) -> None:
        self._phase: hub.Phase | None = None
        self._due = 0.0

    def __call__(self, phase: hub.Phase, done: int) -> None:
        now = time.monotonic()
        if phase != self._phase or now >= self._due:
            self._phase, self._due = phase, now + REPORT_EVERY_S
            _say(Progress(event=phase, done=done))


def _say(line: Line) -> None:
    try:
        sys.stdout.write(line.model_dump_json() + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(1)


def _end_with_agent() -> None:
    # Nothing more is ever written to it, so this returns when the other end closes.
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
