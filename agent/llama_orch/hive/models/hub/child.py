"""Asks the hub what a reference means, in a process of its own: takes the question on standard input.

It answers with one JSON object on standard output, a `Found` or a `ToldFailure`.
What the hub says may be of any length and come at any pace: that costs this process, which may be ended.
"""

from __future__ import annotations

import resource
import signal
import sys
import traceback

from ...problems import Failed, ToldFailure
from . import hub
from .description import LONGEST_QUESTION_S, Found, Question

# Of what it writes to, not of addresses; the library with all that it imports takes 60 MiB of it.
MEMORY_BYTES = 512 * 1024 * 1024


def main() -> None:
    """Ask and answer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    # Its action is to end the process: also where the agent is gone, and waits no longer.
    signal.alarm(LONGEST_QUESTION_S)
    question = Question.model_validate_json(sys.stdin.buffer.readline())
    try:
        answer = Found(model=hub.resolve(question.ref, question.endpoint, question.token))
    except Failed as failed:
        answer = ToldFailure.of(failed)
    except Exception:
        traceback.print_exc()
        said = "what the hub answered cannot be understood"
        answer = ToldFailure.of(Failed("hub_failed", said, "the hive's log has the details", retry=True))
    sys.stdout.write(answer.model_dump_json())


if __name__ == "__main__":
    main()
