"""Reads the facts of one model in a process of its own: `python -m llama_orch.hive.models.facts_child FILE`.

It answers with one JSON object on standard output, a `FactsRead` or a `ToldFailure`, and ends itself where the file
makes it take too long or too much memory.
"""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

from pydantic import BaseModel

from ..problems import Failed, ToldFailure
from . import facts
from .facts import ModelFacts

# A header of the largest vocabulary takes 0.5 s of a processor and a few MiB; one of many parts waits for its disk.
LONGEST_S = 30
CPU_S = 15
MEMORY_BYTES = 512 * 1024 * 1024


class FactsRead(BaseModel):
    """What it answers."""

    facts: ModelFacts


def main(path: Path) -> None:
    """Read and answer."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # At the soft limit it ends by SIGXCPU; at the hard one it would by SIGKILL, as if somebody had killed it.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Its action is to end the process: also where the agent is gone, and waits no longer.
    signal.alarm(LONGEST_S)
    try:
        answer = FactsRead(facts=facts.read(path))
    except Failed as failed:
        answer = ToldFailure.of(failed)
    sys.stdout.write(answer.model_dump_json())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
