"""How long to wait before the next try of what failed."""

from __future__ import annotations

import random

MAX_DELAY_S = 60.0
JITTER = 0.2


def delay(attempt: int, *, most_s: float = MAX_DELAY_S) -> float:
    """Seconds before the try after failure number `attempt` (from 1): 1, 2, 4 … `most_s`, give or take a fifth."""
    base = min(most_s, 2.0 ** min(attempt - 1, 10))
    return base * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  no secret
