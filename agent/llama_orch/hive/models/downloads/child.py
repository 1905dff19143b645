"""A download's own process: takes its job on standard input, tells its progress on standard output.

Each line is one JSON object: {"event": "started"}, {"event": "downloading" | "verifying", "done": BYTES},
{"event": "ready"} or {"event": "failed", "problem": {…}, "retry": BOOL}. It ends when its standard input does, so an
agent that dies leaves none behind.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
import traceback

from ...problems import Failed
from ..hub import hub

REPORT_EVERY_S = 0.2
# Of what it writes to, not of addresses: files go through it in pieces, whatever the hub sends.
MEMORY_BYTES = 1024 * 1024 * 1024


def main() -> int:
    """Do one job; returns 0 where the model is ready."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    job = hub.FetchJob.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_agent, daemon=True).start()
    _say(event="started")
    try:
        hub.fetch(job, _Reporter())
    except Failed as failed:
        _say(event="failed", problem=failed.problem.model_dump(), retry=failed.retry)
        return 1
    except Exception as error:
        traceback.print_exc()
        problem = {"code": "download_failed", "message": f"the download failed: {type(error).__name__}"}
        _say(event="failed", problem={**problem, "what_to_do": "the hive's log has the details"}, retry=True)
        return 1
    _say(event="ready")
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
            _say(event=phase, done=done)


def _say(**event: object) -> None:
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except OSError:
        os._exit(1)


def _end_with_agent() -> None:
    # Nothing more is ever written to it, so this returns when the other end closes.
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
