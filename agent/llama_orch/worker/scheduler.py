"""Which sequence does what in the next step: continuous batching without llama.cpp, threads or time.

A sequence is one slot's context. It holds the tokens that are computed, keeps them when its request ends, and a later
prompt that begins with the same tokens goes on from there. Sequences that generate take one token each in every step;
what room the step has left is for prompts, first come first served, so that nobody's answer waits for somebody's
long prompt. Prompts have scopes: what is held of one is nothing to the others, or they could tell by it what it was.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection
from dataclasses import dataclass, field

from llama_orch.contract.process import OUTPUTS_PER_SLOT

# A copy moves a whole slot's memory, so it must save more than a few tokens' work.
LEAST_COPIED = 32


@dataclass(frozen=True)
class Part:
    """Tokens of one sequence that are computed in a step, from `position` on.

    `outputs` says whether the last of them gives logits, or all, or none.
    """

    sequence: int
    tokens: list[int]
    position: int
    outputs: str = "none"

    @property
    def rows(self) -> int:
        """How many of the tokens give logits."""
        return {"none": 0, "last": 1, "all": len(self.tokens)}[self.outputs]


@dataclass(frozen=True)
class Copy:
    """Let `target` hold the first `count` tokens of `source`."""

    source: int
    target: int
    count: int


@dataclass(frozen=True)
class Step:
    """First the copies, then all parts in one decode."""

    copies: list[Copy]
    parts: list[Part]


@dataclass
class _Sequence:
    id: int
    held: list[int] = field(default_factory=list)
    # Whose tokens these are, those that are wanted included.
    scope: str = ""
    # What is to be held, the tokens drawn so far included; None while the sequence is idle.
    wanted: list[int] | None = None
    prompt: int = 0
    reused: int = 0
    wants_all: bool = False
    order: int = 0
    # The sequence that computes what this one needs as well, and how many tokens of it.
    leader: _Sequence | None = None
    leader_order: int = 0
    shared: int = 0

    @property
    def reads(self) -> bool:
        """Whether its prompt is not yet computed."""
        return self.wanted is not None and len(self.held) < self.prompt


class Scheduler:
    """`count` sequences; `can_copy` says whether one may take over what another holds."""

    def __init__(self, count: int, *, can_copy: bool = True) -> None:
        self._can_copy = can_copy
        self._sequences = [_Sequence(number) for number in range(count)]
        self._orders = 0

    @property
    def active(self) -> bool:
        """Whether any sequence has work."""
        return any(sequence.wanted is not None for sequence in self._sequences)

    @property
    def generating(self) -> int:
        """How many sequences' prompts are computed and their answers go on."""
        return sum(sequence.wanted is not None and not sequence.reads for sequence in self._sequences)

    @property
    def reading(self) -> int:
        """How many sequences' prompts are not yet computed."""
        return sum(sequence.reads for sequence in self._sequences)

    @property
    def held_tokens(self) -> int:
        """Tokens that all sequences hold, used or not."""
        return sum(len(sequence.held) for sequence in self._sequences)

    def start(self, prompt: list[int], *, wants_all: bool = False, scope: str = "") -> tuple[int, int]:
        """Give an idle sequence to a prompt: its number, and how many tokens it may keep of what it holds.

        What was computed for another scope is never kept or taken over.

        The caller takes the rest out of the sequence's memory and says so by `forget` where that cannot be done. With
        `wants_all` the logits of every token of the prompt are wanted, so nothing can be kept. Raises LookupError
        where no sequence is idle.
        """
        idle = [sequence for sequence in self._sequences if sequence.wanted is None]
        if not idle:
            raise LookupError("all sequences are in use")
        # The last token is always computed again: its logits are where the answer begins.
        most = 0 if wants_all else len(prompt) - 1

        def usable(one: _Sequence) -> int:
            return min(_common(one.held, prompt), most) if one.scope == scope else 0

        chosen = max(idle, key=lambda one: (usable(one), -len(one.held), -one.order))
        kept = usable(chosen)
        self._orders += 1
        del chosen.held[kept:]
        chosen.scope = scope
        chosen.wanted, chosen.prompt, chosen.reused = list(prompt), len(prompt), kept
        chosen.wants_all, chosen.order = wants_all, self._orders
        chosen.leader = None
        if self._can_copy and not wants_all:
            self._find_leader(chosen, most)
        return chosen.id, kept

    def _find_leader(self, chosen: _Sequence, most: int) -> None:
        assert chosen.wanted is not None  # noqa: S101  the caller's condition, for the type checker
        for other in self._sequences:
            if other is chosen or other.scope != chosen.scope:
                continue
            shared = min(_common(other.wanted or other.held, chosen.wanted), most)
            if shared >= max(chosen.reused, chosen.shared if chosen.leader else 0) + LEAST_COPIED:
                chosen.leader, chosen.leader_order, chosen.shared = other, other.order, shared

    def next(self, room: int, room_for_prompts: int, resting: Collection[int] = ()) -> Step:
        """The next step: at most `room` tokens, and of prompts at most `room_for_prompts`.

        The answers of sequences that rest do not go on in it.
        """
        copies: list[Copy] = []
        answers: list[Part] = []
        prompts: list[Part] = []
        for sequence in self._sequences:
            if sequence.id in resting:
                continue
            if sequence.wanted is not None and not sequence.reads and len(sequence.held) < len(sequence.wanted):
                answers.append(Part(sequence.id, sequence.wanted[len(sequence.held) :], len(sequence.held), "last"))
        room = min(room - len(answers), room_for_prompts)
        for sequence in sorted((one for one in self._sequences if one.reads), key=lambda one: one.order):
            if self._follow(sequence, copies):
                continue
            # llama.cpp computes parts of unequal length one after the other: a prompt that is cut to fill up the step
            # costs more than one that comes whole in the next.
            if room <= 0 or (prompts and room < sequence.prompt - len(sequence.held)):
                break
            part = self._read(sequence, room)
            prompts.append(part)
            room -= len(part.tokens)
        return Step(copies, answers + prompts)

    def _read(self, sequence: _Sequence, room: int) -> Part:
        assert sequence.wanted is not None  # noqa: S101  the caller's condition, for the type checker
        begin = len(sequence.held)
        size = min(room, sequence.prompt - begin, OUTPUTS_PER_SLOT if sequence.wants_all else room)
        tokens = sequence.wanted[begin : begin + size]
        outputs = "last" if begin + len(tokens) == sequence.prompt else "none"
        return Part(sequence.id, tokens, begin, "all" if sequence.wants_all else outputs)

    def _follow(self, sequence: _Sequence, copies: list[Copy]) -> bool:
        """Whether the sequence waits for its leader; where the leader is far enough, what it holds is taken over."""
        leader = sequence.leader
        if leader is None or sequence.wanted is None:
            return False
        # The leader may have ended since, and have been given to somebody else.
        if leader.scope == sequence.scope and _common(leader.held, sequence.wanted) >= sequence.shared:
            copies.append(Copy(leader.id, sequence.id, sequence.shared))
            sequence.held = sequence.wanted[: sequence.shared]
            sequence.reused = sequence.shared
        elif leader.order == sequence.leader_order and leader.reads:
            return True
        sequence.leader = None
        return False

    def done(self, step: Step) -> None:
        """The step's parts are computed."""
        for part in step.parts:
            self._sequences[part.sequence].held.extend(part.tokens)

    def extend(self, sequence: int, token: int) -> None:
        """A token was drawn: compute it in the next step."""
        wanted = self._sequences[sequence].wanted
        assert wanted is not None  # noqa: S101  only sequences with a request draw tokens
        wanted.append(token)

    def finish(self, sequence: int) -> None:
        """The request has ended; what the sequence holds is kept for the next one."""
        self._sequences[sequence].wanted = None
        self._sequences[sequence].leader = None

    def forget(self, sequence: int) -> None:
        """The sequence's memory is empty now, whatever it held."""
        self._sequences[sequence].held.clear()
        self._sequences[sequence].reused = 0

    def reused(self, sequence: int) -> int:
        """Tokens of the prompt that were not computed again."""
        return self._sequences[sequence].reused


def _common(first: list[int], second: list[int]) -> int:
    """How many tokens both begin with. Slices compare at the speed of C, so the place is found by halving."""
    longest = min(len(first), len(second))
    if first[:longest] == second[:longest]:
        return longest
    return bisect.bisect_left(range(longest), x=True, key=lambda size: first[: size + 1] != second[: size + 1])
