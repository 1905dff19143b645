"""`llama-orch version`."""

from __future__ import annotations

from llama_orch import __version__

from .connection import JsonOption
from .output import line, print_json


def version(as_json: JsonOption = False) -> None:
    """Show this program's version."""
    if as_json:
        print_json({"version": __version__})
    else:
        line(f"llama-orch {__version__}")
