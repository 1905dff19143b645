"""When a worker that crashes again and again is given up."""

from __future__ import annotations

CRASHES_IN_A_ROW = 5
ENOUGH_SERVICE_S = 300.0


def streak_after(streak: int, served_s: float) -> int:
    """Crashes in a row, counting the one that just happened after `served_s` seconds of service."""
    return 1 if served_s >= ENOUGH_SERVICE_S else streak + 1


def gives_up(streak: int) -> bool:
    """Whether that many crashes in a row are enough."""
    return streak >= CRASHES_IN_A_ROW
