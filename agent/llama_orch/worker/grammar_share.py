"""How much of the engine's time one scope's grammars may take while others' answers run beside them.

A grammar judges in the engine's thread, between two steps, and all answers wait for it. One that is within its bounds
may still take many times what a step takes, and a client may ask for many answers at once. So the time is counted for
the scope, however many answers and connections it has.
"""

from __future__ import annotations

# Of the time that passes; and how far a scope may be ahead of it.
SHARE = 0.25
BURST_SECONDS = 0.25


class GrammarShare:
    """Times are in seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        # When what a scope has used would have come to it at its share.
        self._paid_at: dict[str, float] = {}

    def charge(self, scope: str, seconds: float, now: float) -> None:
        """A grammar of this scope took so much of the engine's time."""
        self._paid_at = {one: at for one, at in self._paid_at.items() if at > now}
        self._paid_at[scope] = max(self._paid_at.get(scope, now), now) + seconds / SHARE

    def rests(self, scope: str, now: float) -> bool:
        """Whether this scope's grammars have to wait for those of others."""
        return self._paid_at.get(scope, now) - now > BURST_SECONDS / SHARE
