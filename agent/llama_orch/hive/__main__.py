"""`llama-orch-hive`, also as `python -m llama_orch.hive`."""

from __future__ import annotations

import gc

# What is imported stays: looking for garbage in it takes a seventh of a start. The server switches that on again.
gc.disable()

from .main import main  # noqa: E402

if __name__ == "__main__":
    main()
