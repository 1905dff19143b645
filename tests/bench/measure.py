"""What is sent to a server, and what is counted while it answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from random import Random

from . import bench_model, process_use
from .load import Ask, Plan, Result
from .servers import Running

LOAD_SECONDS = 400.0


@dataclass(frozen=True)
class Scenario:
    """Requests of one kind: `per_streams` is how many are sent, by the number of streams."""

    name: str
    prompt_tokens: int
    answer_tokens: int
    shared: bool
    per_streams: dict[int, int]

    def asks(self, streams: int, seed: int) -> list[Ask]:
        """The same for every server. A shared prefix is seven eighths of the prompt; others share nothing."""
        draw = Random(f"{self.name} {streams} {seed}")
        prefix_tokens = self.prompt_tokens * 7 // 8
        prefix = bench_model.unshared_prompt(prefix_tokens, _number(self, 0), draw)
        asks: list[Ask] = []
        for number in range(self.per_streams.get(streams, 2 * streams)):
            if self.shared:
                text = prefix + bench_model.prompt(self.prompt_tokens - prefix_tokens + 1, draw)
            else:
                text = bench_model.unshared_prompt(self.prompt_tokens, _number(self, number), draw)
            # Answers of slightly different lengths: otherwise all streams would begin and end in step, and no
            # request would ever join others that are under way.
            length = self.answer_tokens * (28 + number * 5 % 9) // 32
            asks.append(Ask(text, self.prompt_tokens, length))
        return asks


SHORT = Scenario("short", 32, 64, shared=False, per_streams={1: 4, 2: 6, 4: 12, 8: 16})
SHORT_SHARED = Scenario("short, shared prefix", 32, 64, shared=True, per_streams={1: 2, 2: 4, 4: 8, 8: 8})
LONG = Scenario("long", 512, 32, shared=False, per_streams={1: 2, 2: 2, 4: 4, 8: 8})
LONG_SHARED = Scenario("long, shared prefix", 512, 32, shared=True, per_streams={1: 3, 2: 4, 4: 8, 8: 16})
SCENARIOS = (SHORT, SHORT_SHARED, LONG, LONG_SHARED)


def _number(scenario: Scenario, number: int) -> int:
    """A number that no other request to the same process has."""
    return 100 * SCENARIOS.index(scenario) + number


@dataclass(frozen=True)
class Measured:
    """One scenario on one server. Times in seconds; `others` is how many cores somebody else kept busy."""

    tokens_per_s: float
    ttft_p50: float
    ttft_p95: float
    cpu_per_1000: float
    resident: float
    reused: float
    errors: list[str]
    load_cpu: float
    others: float


def measure(running: Running, scenario: Scenario, streams: int, seed: int, quiet: process_use.Quiet) -> Measured:
    """Send the scenario's requests, and others once more if the machine was not ours alone.

    Raises RuntimeError when the load generator fails.
    """
    first = _measure(running, scenario, streams, seed)
    if first.others < quiet.busy_cores or not quiet.wait():
        return first
    second = _measure(running, scenario, streams, seed + 1000)
    return min(first, second, key=lambda measured: measured.others)


def _measure(running: Running, scenario: Scenario, streams: int, seed: int) -> Measured:
    plan = Plan(running.url, streams, scenario.asks(streams, seed), running.headers, running.extra)
    began = time.perf_counter()
    own, server, machine = _own_cpu(), process_use.cpu_seconds(running.pid), process_use.machine_busy_seconds()
    result = _load(plan)
    server = process_use.cpu_seconds(running.pid) - server
    others = process_use.machine_busy_seconds() - machine - server - (_own_cpu() - own)
    passed = time.perf_counter() - began
    good = [answer for answer in result.answers if not answer.error]
    tokens = sum(answer.tokens for answer in good)
    waits = [answer.first - answer.asked for answer in good]
    prompts = sum(ask.prompt_tokens for ask in plan.asks)
    return Measured(
        tokens_per_s=tokens / result.wall,
        ttft_p50=percentile(waits, 50),
        ttft_p95=percentile(waits, 95),
        cpu_per_1000=server / tokens * 1000 if tokens else math.nan,
        resident=process_use.resident_bytes(running.pid),
        reused=sum(max(answer.cached, 0) for answer in good) / prompts,
        errors=[answer.error for answer in result.answers if answer.error],
        load_cpu=result.cpu / result.wall,
        others=max(0.0, others) / passed,
    )


def percentile(values: list[float], percent: float) -> float:
    """The smallest of the values that so many percent of them do not exceed."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _load(plan: Plan) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load"],
        input=json.dumps(asdict(plan)),
        capture_output=True,
        text=True,
        timeout=LOAD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr[-2000:]}")
    return Result.from_json(done.stdout)


def _own_cpu() -> float:
    """What the benchmark itself has used, its load generators included."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
