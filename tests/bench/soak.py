"""Many requests of random shape, a third of them cut off at random: `python -m tests.bench.soak --requests 10000`.

Starts a worker with a tiny model, then says whether all slots are idle, the memory is flat and the last answer right.
The last line printed is one JSON object; the exit code is 0 where all of it holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import string
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from llama_orch.demo_model import expected_completion, write_demo_model
from tests.bench.process_use import resident_bytes
from tests.support.worker_process import WorkerProcess, complete, metric, session_of, until_metric

SLOTS, CONTEXT = 4, 512
# Some answers are complete before their client leaves, so that a third of all is cut off.
LEAVERS = 0.41
# Memory may grow by this part between the first tenth, when all caches are warm, and the end.
MEMORY_PART = 0.10
REQUEST_SECONDS = 120.0
_SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": _SCHEMA}}


@dataclass
class Outcome:
    """What came of all requests. `wrong` says of each failed check what was seen."""

    requests: int
    seconds: float
    cut: int
    by_result: dict[str, int]
    generated_tokens: float
    rss_after_a_tenth: int
    rss_at_the_end: int
    slots_busy: float
    wrong: list[str]


def request(draw: random.Random) -> tuple[str, dict[str, Any], str | None]:
    """A path, a body, and the text that must come, where that is known."""
    stream = draw.random() < 0.6
    prompt = "".join(draw.choices(string.ascii_letters + string.digits, k=draw.choice([1, 5, 40, 300])))
    tokens = draw.choice([1, 5, 30, 150])
    if draw.random() < 0.25:
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": stream}
        return "/v1/completions", body, expected_completion(prompt[-1], tokens)
    if draw.random() < 0.6:
        shape = draw.choices([_drawn, _echoed, _bad], [4, 1, 2])[0](draw)
        return "/v1/completions", {"prompt": prompt, "max_tokens": tokens, "stream": stream, **shape}, None
    shape = draw.choices([{}, _constrained(draw), {"tools": [_TOOL], "tool_choice": "required"}], [4, 2, 1])[0]
    chat = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": stream}
    return "/v1/chat/completions", {**chat, **shape}, None


def _drawn(draw: random.Random) -> dict[str, Any]:
    return {
        "temperature": draw.uniform(0, 2), "top_p": draw.uniform(0.1, 1), "top_k": draw.randrange(50),
        "min_p": draw.random(), "frequency_penalty": draw.uniform(-2, 2), "repeat_penalty": draw.uniform(0.5, 2),
        "ignore_eos": draw.random() < 0.5, "n": draw.randrange(1, 4), "stop": draw.choice([None, "E", ["x", "yz"]]),
        "logit_bias": {str(draw.randrange(300)): draw.uniform(-5, 5)}, "seed": draw.randrange(1000),
        "logprobs": draw.choice([None, 0, 3]),
    }  # fmt: skip


def _echoed(draw: random.Random) -> dict[str, Any]:
    return {"max_tokens": draw.choice([0, 5]), "echo": True, "logprobs": draw.choice([None, 2])}


def _bad(draw: random.Random) -> dict[str, Any]:
    return draw.choice([{"prompt": ""}, {"prompt": "1" * 2 * CONTEXT}, {"grammar": "root ::= x"}, {"temperature": 3}])


def _constrained(draw: random.Random) -> dict[str, Any]:
    return draw.choice(
        [
            {"grammar": 'root ::= [0-9]{3} | "no"'},
            {"response_format": {"type": "json_object"}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": _SCHEMA}}},
        ]
    )


async def send(session: aiohttp.ClientSession, draw: random.Random, wrong: list[str]) -> str:
    """Send one request, perhaps leave before its end, and say how it ended."""
    path, body, expected = request(draw)
    # Most answers take some 10 to 100 ms.
    leaves_after = draw.expovariate(1 / 0.03) if draw.random() < LEAVERS else None
    try:
        async with asyncio.timeout(leaves_after or REQUEST_SECONDS):
            async with session.post(path, json=body) as answer:
                text = await answer.text()
    except TimeoutError:
        if leaves_after is None:
            wrong.append(f"no answer within {REQUEST_SECONDS:.0f} s to {json.dumps(body)[:300]}")
            return "late"
        return "cut"
    if answer.status >= 500:
        wrong.append(f"{answer.status} to {json.dumps(body)[:300]}: {text[:300]}")
    elif answer.status == 200 and "error" in text.rpartition("data: {")[2][:40]:
        wrong.append(f"broken off: {json.dumps(body)[:300]}: {text[-300:]}")
    elif answer.status == 200 and expected is not None and _text(text, streamed=body["stream"]) != expected:
        wrong.append(f"not {expected!r} to {json.dumps(body)[:300]}: {text[-300:]}")
    return str(answer.status)


def _text(answer: str, *, streamed: bool) -> str:
    if not streamed:
        return json.loads(answer)["choices"][0]["text"]
    chunks = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


async def soak(worker: WorkerProcess, requests: int, seed: int = 1, clients: int = 2 * SLOTS) -> Outcome:
    """Send the requests from several clients at once and look at what they have left behind."""
    await worker.until("idle")
    wrong: list[str] = []
    results: Counter[str] = Counter()
    numbers = iter(range(requests))
    memory = 0
    began = time.monotonic()
    async with session_of(worker) as session:

        async def client() -> None:
            nonlocal memory
            for number in numbers:
                if number == requests // 10:
                    memory = resident_bytes(worker.process.pid)
                results[await send(session, random.Random(f"{seed}-{number}"), wrong)] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        seconds = time.monotonic() - began
        for series in ('slots{state="busy"}', "queued_requests"):
            try:
                await until_metric(session, series, 0)
            except AssertionError as error:
                wrong.append(str(error))
        last = await complete(session, "A", max_tokens=30, temperature=0)
        if last != expected_completion("A", 30):
            wrong.append(f"the last answer was {last!r}")
        at_the_end = resident_bytes(worker.process.pid)
        if abs(at_the_end - memory) > MEMORY_PART * memory:
            wrong.append(f"memory went from {memory} to {at_the_end} bytes")
        return Outcome(
            requests=requests,
            seconds=round(seconds, 1),
            cut=results["cut"],
            by_result=dict(sorted(results.items())),
            generated_tokens=await metric(session, "generated_tokens_total"),
            rss_after_a_tenth=memory,
            rss_at_the_end=at_the_end,
            slots_busy=await metric(session, 'slots{state="busy"}'),
            wrong=wrong,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Send many requests of random shape to a worker.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_demo_model(Path(folder) / "demo.gguf")
        worker = WorkerProcess(Path(folder) / "worker", model, slots=SLOTS, ctx_per_slot=CONTEXT)
        try:
            outcome = asyncio.run(soak(worker, arguments.requests, arguments.seed))
        finally:
            worker.kill()
    lines = [
        f"{outcome.requests} requests in {outcome.seconds} s, {outcome.cut} cut off: {outcome.by_result}",
        f"{outcome.generated_tokens:.0f} tokens generated, {outcome.slots_busy:.0f} slots busy at the end",
        f"{outcome.rss_after_a_tenth / 1e6:.1f} MB after a tenth, {outcome.rss_at_the_end / 1e6:.1f} at the end",
        *(f"wrong: {problem}" for problem in outcome.wrong[:20]),
        json.dumps(asdict(outcome)),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
