"""How much of large bodies is in memory at one time: each may be as large as a model's context, and many may come."""

from __future__ import annotations

from collections.abc import Hashable

from llama_orch.contract.errors import Busy

# What any request may bring, also one that has shown no token.
SMALL_BYTES = 1024 * 1024
# So many of the largest bodies may be there at one time.
LARGEST_BODIES = 4


class BodyRoom:
    """Room for bodies above SMALL_BYTES, counted for each connection from its request's head until its answer.

    All methods belong to the event loop's thread.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._most_of_one = max_body_bytes
        self._left = LARGEST_BODIES * max_body_bytes
        self._taken: dict[Hashable, int] = {}

    def take(self, connection: Hashable, length: str | None, *, chunked: bool) -> None:
        """Take what a head announces; a body without a length may become the largest. Raises Busy."""
        size = self._most_of_one if chunked else int(length or 0)
        # A larger one is refused before it is read.
        if size <= SMALL_BYTES or size > self._most_of_one:
            return
        if size > self._left:
            raise Busy("other large requests are being read: try again in 2 s", headers={"Retry-After": "2"})
        self._left -= size
        self._taken[connection] = self._taken.get(connection, 0) + size

    def give_back(self, connection: Hashable) -> None:
        """The connection's request is answered, or it is gone."""
        self._left += self._taken.pop(connection, 0)
