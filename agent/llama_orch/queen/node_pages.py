"""The fleet as JSON, whole or in pages: what has not changed is not made anew, what has takes turns with all else.

A thousand nodes are megabytes and some tenths of a second, in which the queen's loop would answer nobody.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_right

from .nodes import NodeFacts, Nodes

# Between two turns of everything else: so many nodes are made to text, or so many times more only looked at.
MOST_MADE_IN_ONE_GO = 20
_LOOKS_PER_MADE = 25


class NodePages:
    """Keeps the text of each node beside what it was made of."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._made: dict[str, tuple[NodeFacts, bytes]] = {}
        # Those who ask at the same time do not each make it.
        self._one_at_a_time = asyncio.Lock()

    async def whole(self) -> bytes:
        """The NodeList of all nodes, by name."""
        async with self._one_at_a_time:
            await self._nodes.look_at_host_keys()
            return self._list(await self._texts(self._nodes.names()))

    async def page(self, limit: int, after: str = "") -> bytes:
        """The NodeList of the first `limit` nodes whose names come behind `after`."""
        async with self._one_at_a_time:
            await self._nodes.look_at_host_keys()
            names = self._nodes.names()
            begin = bisect_right(names, after)
            wanted = names[begin : begin + limit]
            cursor = wanted[-1] if begin + limit < len(names) else None
            return self._list(await self._texts(wanted), b',"next_cursor":' + json.dumps(cursor).encode())

    async def _texts(self, names: list[str]) -> list[bytes]:
        texts: list[bytes] = []
        turn = 0
        for name in names:
            facts = self._nodes.facts(name)
            if facts is None:
                continue  # it left since the names were read
            kept = self._made.get(name)
            if kept is None or kept[0] != facts:
                kept = self._made[name] = (facts, self._nodes.shape(facts).model_dump_json().encode())
                turn += _LOOKS_PER_MADE
            texts.append(kept[1])
            turn += 1
            if turn >= MOST_MADE_IN_ONE_GO * _LOOKS_PER_MADE:
                turn = 0
                await asyncio.sleep(0)
        self._forget_those_that_left()
        return texts

    def _forget_those_that_left(self) -> None:
        if len(self._made) > len(names := self._nodes.names()):
            there = set(names)
            self._made = {name: kept for name, kept in self._made.items() if name in there}

    def _list(self, nodes: list[bytes], more: bytes = b"") -> bytes:
        problems = b",".join(problem.model_dump_json().encode() for problem in self._nodes.problems)
        return b"".join((b'{"nodes":[', b",".join(nodes), b'],"problems":[', problems, b"]", more, b"}"))
