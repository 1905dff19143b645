"""`python -m llama_orch.worker --spec FILE --token-fd N`."""

from __future__ import annotations

import gc
import os
import signal

# Before anything that takes time to import: a signal's default action would end us with a signal as the reason,
# and the hive would take an end that it asked for to be a crash. Nothing is under way yet, so just leave.
for _number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(_number, lambda *_: os._exit(0))

# What is imported stays: looking for garbage in it takes a seventh of a start. The server switches that on again.
gc.disable()

from .process import main  # noqa: E402

if __name__ == "__main__":
    main()
