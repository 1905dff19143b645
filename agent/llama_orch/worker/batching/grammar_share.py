"""How much of the engine's time one client's grammars may take while others' answers run beside them.

A grammar judges in the engine's thread, between two steps, and all answers wait for it. One that is within its bounds
may still take many times what a step takes, and a client may ask for many answers at once. So the time is counted for
the client, however many answers and connections it has.
"""

from __future__ import annotations

# Of the time that passes; and how far a client may be ahead of it.
SHARE = 0.25
BURST_SECONDS = 0.25


class GrammarShare:
    """Times are in seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        # When what a client has used would have come to it at its share.
        self._paid_at: dict[str, float] = {}

    def charge(self, client: str, seconds: float, now: float) -> None:
        """A grammar of this client took so much of the engine's time."""
        self._paid_at = {one: at for one, at in self._paid_at.items() if at > now}
        self._paid_at[client] = max(self._paid_at.get(client, now), now) + seconds / SHARE

    def rests(self, client: str, now: float) -> bool:
        """Whether this client's grammars have to wait for those of others."""
        return self._paid_at.get(client, now) - now > BURST_SECONDS / SHARE
