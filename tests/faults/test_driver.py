"""The driver finds what stays wrong, what comes a moment late, and workers that ended for a fault that ends none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from . import settling
from .driver import run, table
from .fault import Catalogue
from .ledger import Ledger
from .wall_clock import WallClock


class OneWorker:
    """A world of one worker that runs, or not."""

    def __init__(self) -> None:
        self.pid = 1
        self.found: list[str] = []
        self.closed = False

    async def start(self) -> None:
        """There is nothing to start."""

    async def close(self) -> None:
        self.closed = True

    def remember(self) -> None:
        """It holds nothing."""

    async def wrong(self) -> list[str]:
        return list(self.found)

    async def lives(self) -> dict[str, int]:
        return {"one": self.pid}

    def logs(self) -> str:
        return ""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "STAYS_S", 0.05)
    monkeypatch.setattr(settling, "_BETWEEN_S", 0.01)


async def test_what_stays_wrong_is_a_violation_and_ends_the_seed() -> None:
    catalogue, world = Catalogue[OneWorker](), OneWorker()

    @catalogue.fault(0.1)
    async def it_breaks(world: OneWorker, _: Random) -> None:
        world.found = ["it is broken"]

    kinds = await run(world, catalogue.faults, seed=7, count=5)
    assert kinds["it_breaks"].violations == ["seed 7, fault 1, it_breaks: it is broken"]
    assert len(kinds["it_breaks"].recoveries_s) == 1
    assert world.closed
    assert "it_breaks" in table(kinds)


async def test_a_consequence_that_comes_late_is_seen() -> None:
    catalogue, world = Catalogue[OneWorker](), OneWorker()

    @catalogue.fault(0.1)
    async def it_breaks_later(world: OneWorker, _: Random) -> None:
        asyncio.get_running_loop().call_later(0.02, world.found.append, "it is broken")

    kinds = await run(world, catalogue.faults, seed=7, count=1)
    assert len(kinds["it_breaks_later"].violations) == 1


async def test_a_worker_that_ends_for_what_ends_none_is_a_violation() -> None:
    catalogue, world = Catalogue[OneWorker](), OneWorker()

    @catalogue.fault(1, keeps_workers=True)
    async def it_is_started_again(world: OneWorker, _: Random) -> None:
        world.pid += 1

    kinds = await run(world, catalogue.faults, seed=7, count=1)
    (violation,) = kinds["it_is_started_again"].violations
    assert "should have lived on" in violation


async def test_a_fault_that_cannot_happen_is_a_violation() -> None:
    catalogue, world = Catalogue[OneWorker](), OneWorker()

    @catalogue.fault(1)
    async def it_fails(_world: OneWorker, _: Random) -> None:
        raise OSError("no such thing")

    kinds = await run(world, catalogue.faults, seed=7, count=1)
    assert kinds["it_fails"].violations == ["seed 7, fault 1, it_fails: OSError: no such thing"]


async def test_a_seed_is_the_same_faults_again() -> None:
    drawn: list[float] = []
    catalogue = Catalogue[OneWorker]()

    @catalogue.fault(1)
    async def one(_world: OneWorker, random: Random) -> None:
        drawn.append(random.random())

    @catalogue.fault(1)
    async def other(_world: OneWorker, random: Random) -> None:
        drawn.append(-random.random())

    for _ in range(2):
        await run(OneWorker(), catalogue.faults, seed=7, count=6)
    assert drawn[:6] == drawn[6:]
    assert len(set(drawn)) == 6
    for first, second in zip(drawn[:6:2], drawn[1:6:2], strict=True):
        assert first * second < 0, "all come once before any comes again"


def test_the_wall_clock_of_a_process_jumps_and_no_other_clock(tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    code = "import time, datetime; print(time.time(), time.monotonic(), datetime.datetime.now().timestamp())"
    told: list[list[float]] = []
    for seconds in (0, -86400, 3600):
        clock.set(seconds)
        done = subprocess.run(
            [sys.executable, "-c", code], env=clock.environment, capture_output=True, text=True, check=True, timeout=30
        )
        wall, monotonic, date = map(float, done.stdout.split())
        told.append([wall - time.time(), monotonic - time.monotonic(), date - time.time()])
    assert [[round(value / 60) for value in one] for one in told] == [[0, 0, 0], [-1440, 0, -1440], [60, 0, 60]]


async def test_what_clients_were_told_is_held_against_what_is_there() -> None:
    told = iter([(200, {"id": "a"}), (409, None), (200, None), OSError("cut")])
    asked: list[str] = []

    async def call(method: str, path: str, **_: object) -> tuple[int, object]:
        asked.append(f"{method} {path}")
        answer = next(told)
        if isinstance(answer, OSError):
            raise answer
        return answer

    ledger = Ledger(call, lambda name: {"name": name})
    assert ledger.lost([]) == []
    await ledger.spawn("extra")
    await ledger.spawn("extra")
    assert ledger.lost([]) == ["worker extra was acknowledged as started, and that is lost"]
    assert ledger.lost(["extra"]) == []
    await ledger.delete("extra")
    assert ledger.lost(["extra"]) == ["worker extra was acknowledged as deleted, and that is lost"]
    await ledger.spawn("extra")
    assert ledger.lost([]) == ledger.lost(["extra"]) == []
    assert asked[2] == "DELETE /api/v1/workers/a"
