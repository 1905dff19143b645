"""How long to wait before a crashed worker is started again, and when to give up."""

from __future__ import annotations

import random

MAX_DELAY_S = 60.0
JITTER = 0.2
CRASHES_IN_A_ROW = 5
ENOUGH_SERVICE_S = 300.0


def streak_after(streak: int, served_s: float) -> int:
    """Crashes in a row, counting the one that just happened after `served_s` seconds of service."""
    return 1 if served_s >= ENOUGH_SERVICE_S else streak + 1


def gives_up(streak: int) -> bool:
    """Whether that many crashes in a row are enough."""
    return streak >= CRASHES_IN_A_ROW


def delay(attempt: int) -> float:
    """Seconds before the try after failure number `attempt` (from 1): 1, 2, 4 … 60, give or take a fifth."""
    base = min(MAX_DELAY_S, 2.0 ** min(attempt - 1, 10))
    return base * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  no secret
