"""What the benchmark says is only as good as its own arithmetic."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import pytest

from tests.bench import process_use
from tests.bench.load import Ask, Plan, _Stream
from tests.bench.measure import SCENARIOS, SHORT, Measured, percentile
from tests.bench.report import Results, ratios, table
from tests.bench.servers import LLAMA_CPP_SERVER, LLAMA_SERVER, OURS


def measured(tokens_per_s: float, ttft: float = 1.0, cpu: float = 1.0) -> Measured:
    return Measured(tokens_per_s, ttft, ttft, cpu, 1e6, 0.0, [], 0.1, 0.0)


def test_the_ratios_are_of_the_medians_of_the_short_prompts():
    results = Results()
    for speed in (10.0, 200.0, 100.0):
        results.add(SHORT, 4, OURS, measured(speed, ttft=0.5, cpu=3.0))
        results.add(SHORT, 4, LLAMA_SERVER, measured(speed / 2, cpu=2.0))
    results.add(SHORT, 8, OURS, measured(300.0))
    results.add(SHORT, 8, LLAMA_CPP_SERVER, measured(100.0))
    results.add(SCENARIOS[2], 4, LLAMA_SERVER, measured(1.0))
    assert ratios(results) == {
        "tokens_per_s_over_llama_server": {"4": 2.0},
        "tokens_per_s_over_llama_cpp_server": {"8": 3.0},
        "ttft_p95_over_llama_server": {"4": 0.5},
        "cpu_over_llama_server": {"4": 1.5},
    }
    assert len(table(results).splitlines()) == 6


def test_percentiles():
    values = [float(number) for number in range(20, 0, -1)]
    assert (percentile(values, 50), percentile(values, 95), percentile([7.0], 95)) == (10.0, 19.0, 7.0)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_prompts_share_what_they_should(scenario):
    asks = scenario.asks(8, seed=0)
    begins = {ask.prompt[:2] for ask in asks}
    assert len(begins) == (1 if scenario.shared else len(asks))
    assert len({ask.prompt for ask in asks}) == len(asks)
    assert {len(ask.prompt) for ask in asks} == {2 * (scenario.prompt_tokens - 1)}
    assert asks == scenario.asks(8, seed=0) != scenario.asks(8, seed=1)
    others = {ask.prompt[:2] for other in SCENARIOS if other != scenario for ask in other.asks(8, seed=0)}
    assert not begins & others


def test_a_plan_survives_its_way_to_the_load_generator():
    plan = Plan("http://host", 2, SHORT.asks(2, 0), {"a": "b"}, {"c": 1})
    assert Plan.from_json(json.dumps(asdict(plan))) == plan


def event(**values) -> bytes:
    return b"data: " + json.dumps(values).encode() + b"\n\n"


LAST = event(choices=[{"text": "", "finish_reason": "length"}])
USAGE = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": None})


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (LAST + USAGE, (5, -1, "")),
        (LAST, (5, -1, "")),  # a server that streams no usage
        (USAGE, (0, -1, "ended with None, not by its length")),
        (event(error={"message": "no"}), (0, -1, "{'message': 'no'}")),
        (LAST + USAGE.replace(b"5", b"4"), (4, -1, "counted 9 tokens of prompt and 4 of answer, not 9 and 5")),
    ],
)
def test_an_answer_counts_only_if_it_is_whole(end: bytes, outcome: tuple[int, int, str]):
    stream = _Stream()
    data = event(choices=[{"text": ""}]) + event(choices=[{"text": "x"}])
    stream.feed(data[:60])
    assert not stream.first
    stream.feed(data[60:])
    assert stream.first
    stream.feed(b": a comment\n\n" + end + b"data: [DONE]\n\n")
    assert stream.outcome(Ask("AaBb", 9, 5)) == outcome


def test_a_process_counts_its_threads_and_children():
    before = process_use.cpu_seconds(os.getpid())
    sum(range(5_000_000))
    assert process_use.cpu_seconds(os.getpid()) > before
    assert process_use.resident_bytes(os.getpid()) > 10e6
    assert os.getpid() in process_use.tree(os.getppid())
