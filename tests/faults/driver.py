"""Lets faults happen one after the other, and tells what came of each kind."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from .kinds import FAULTS
from .world import World


@dataclass
class Kind:
    """How often a fault happened, how long it took until all was well, and what was not well in the end."""

    recoveries_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


async def run(folder: Path, seed: int, count: int) -> dict[str, Kind]:
    """Let `count` faults happen, chosen by `seed`. Stops at the first that leaves something wrong."""
    random = Random(seed)
    kinds: defaultdict[str, Kind] = defaultdict(Kind)
    world = World(folder)
    try:
        await world.start()
        for number in range(count):
            fault = random.choice(FAULTS)
            kind = kinds[fault.name]
            try:
                await fault.happens(world, random)
                took, wrong = await world.settled(fault.promise_s)
            except Exception as error:
                took, wrong = 0.0, [f"{type(error).__name__}: {error}"]
            sys.stderr.write(f"seed {seed}, fault {number + 1}: {fault.name}: well after {took:.1f} s {wrong or ''}\n")
            kind.recoveries_s.append(took)
            if wrong:
                kind.violations += [f"seed {seed}, fault {number + 1}: {one}" for one in wrong]
                logs = (world.hive.log() + world.queen.log())[-6000:]
                sys.stderr.write(f"{logs}\n")
                break
    finally:
        await world.close()
    return kinds


def table(kinds: dict[str, Kind]) -> str:
    """The kinds with their times, one a line."""
    lines = [f"{'fault':45} {'times':>5} {'p50 s':>7} {'worst s':>8} {'promised s':>10}  violations"]
    promised = {fault.name: fault.promise_s for fault in FAULTS}
    for name, kind in sorted(kinds.items()):
        half, worst = f"{statistics.median(kind.recoveries_s):.1f}", f"{max(kind.recoveries_s):.1f}"
        times, promise = len(kind.recoveries_s), f"{promised[name]:.0f}"
        lines.append(f"{name:45} {times:5} {half:>7} {worst:>8} {promise:>10}  {len(kind.violations)}")
    return "\n".join(lines)
