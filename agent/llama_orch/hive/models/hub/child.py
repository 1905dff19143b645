"""Asks the hub what a reference means, in a process of its own: takes the question on standard input.

It answers one JSON object on standard output: {"model": {…}}, or {"problem": {…}, "retry": BOOL, "details": {…}}.
What the hub says may be of any length and come at any pace: that costs this process, which may be ended.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import traceback

from ...problems import Failed, failed_as_json
from . import hub
from .description import LONGEST_QUESTION_S, Question

# Of what it writes to, not of addresses; the library with all that it imports takes 60 MiB of it.
MEMORY_BYTES = 512 * 1024 * 1024


def main() -> None:
    """Ask and answer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    # Its action is to end the process: also where the agent is gone, and waits no longer.
    signal.alarm(LONGEST_QUESTION_S)
    question = Question.model_validate_json(sys.stdin.buffer.readline())
    answer: dict[str, object]
    try:
        answer = {"model": hub.resolve(question.ref, question.endpoint, question.token).model_dump()}
    except Failed as failed:
        answer = failed_as_json(failed)
    except Exception:
        traceback.print_exc()
        problem = {"code": "hub_failed", "message": "what the hub answered cannot be understood"}
        answer = {"problem": problem | {"what_to_do": "the hive's log has the details"}, "retry": True, "details": {}}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
