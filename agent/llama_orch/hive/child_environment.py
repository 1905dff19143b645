"""What the processes of workers, and those that run their code, get of the agent's environment."""

from __future__ import annotations

import os
from pathlib import Path

from llama_orch.contract.home import HOME_VARIABLE

# Everything else, above all the agent's own settings and credentials, is no business of a worker's.
_ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "TZ", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"),
    HOME_VARIABLE,
)


def child_environment() -> dict[str, str]:
    """What a worker's process, or another that runs its code, gets of the agent's environment."""
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    if "PYTHONPATH" in kept:
        # A relative entry is meant from where the agent is, not from the worker's folder.
        kept["PYTHONPATH"] = os.pathsep.join(
            str(Path(entry).absolute()) for entry in kept["PYTHONPATH"].split(os.pathsep)
        )
    # Where llama.cpp gives up, a debugger that it finds on the machine would hold the dying worker for minutes, and
    # print what the worker had in hand into its log.
    return kept | {"GGML_NO_BACKTRACE": "1"}
