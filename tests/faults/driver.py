"""Lets faults happen one after the other, and tells what came of each kind."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from .fault import Fault, W
from .settling import settled

START_MOST_S = 900.0
START_SETTLES_S = 90.0
HAPPENS_MOST_S = 700.0


@dataclass
class Kind:
    """How often a fault happened, how long it took until all was well, and what was not well in the end."""

    promise_s: float = 0.0
    recoveries_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


async def run(world: W, faults: Sequence[Fault[W]], seed: int, count: int) -> dict[str, Kind]:
    """Let `count` faults happen, chosen by `seed`. Stops at the first that leaves something wrong."""
    kinds: defaultdict[str, Kind] = defaultdict(Kind)
    try:
        async with asyncio.timeout(START_MOST_S):
            await world.start()
        _, wrong = await settled(world.wrong, START_SETTLES_S)
        if wrong:
            raise AssertionError(f"it was not well before any fault: {wrong}\n{world.logs()}")
        world.remember()
        for number in range(1, count + 1):
            # Each has its own, so that none depends on how often those before it drew.
            random = Random(f"{seed} {number}")
            fault = _fault(faults, seed, number)
            began = time.monotonic()
            took, wrong = await _one(world, fault, random)
            kind = kinds[fault.name]
            kind.promise_s = fault.promise_s
            kind.recoveries_s.append(took)
            kind.violations += [f"seed {seed}, fault {number}, {fault.name}: {one}" for one in wrong]
            lasted = time.monotonic() - began - took
            _say(f"seed {seed}, fault {number}: {fault.name}: {lasted:.1f} s, well after {took:.1f} s {wrong or ''}")
            if wrong:
                _say(world.logs())
                break
    finally:
        await world.close()
    return kinds


def _fault(faults: Sequence[Fault[W]], seed: int, number: int) -> Fault[W]:
    """The fault of that number: all come once, in an order of the seed's, before any comes again."""
    shuffled, place = divmod(number - 1, len(faults))
    return Random(f"{seed} order {shuffled}").sample(faults, len(faults))[place]


async def _one(world: W, fault: Fault[W], random: Random) -> tuple[float, list[str]]:
    """Seconds until all was well again, and what was wrong in the end."""
    try:
        before = await world.lives()
        async with asyncio.timeout(HAPPENS_MOST_S):
            await fault.happens(world, random)
        took, wrong = await settled(world.wrong, fault.promise_s)
        if not wrong and fault.keeps_workers and (after := await world.lives()) != before:
            wrong = [f"workers that serve should have lived on: {before} became {after}"]
    except Exception as error:
        return 0.0, [f"{type(error).__name__}: {error}"]
    return took, wrong


def table(kinds: dict[str, Kind]) -> str:
    """The kinds with their times, one a line."""
    lines = [f"{'fault':46} {'times':>5} {'p50 s':>7} {'worst s':>8} {'promised s':>10}  violations"]
    for name, kind in sorted(kinds.items()):
        half, worst = f"{statistics.median(kind.recoveries_s):.1f}", f"{max(kind.recoveries_s):.1f}"
        times, promise = len(kind.recoveries_s), f"{kind.promise_s:.0f}"
        lines.append(f"{name:46} {times:5} {half:>7} {worst:>8} {promise:>10}  {len(kind.violations)}")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
