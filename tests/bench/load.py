"""Sends completions to one server from a fixed number of clients and says how the answers came.

A process of its own, so that its work is not counted as a server's: it reads a plan from standard input and writes
a result to standard output, both as JSON. It looks into a stream only until the first text and then at its end, for
it runs on the cores that it measures.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import uvloop

REQUEST_SECONDS = 180.0
# The last events of a stream, with its usage and its reason to end, are shorter than this together.
_TAIL_BYTES = 16384


@dataclass(frozen=True)
class Ask:
    """One request: its text, how many tokens that is, and how many are wanted."""

    prompt: str
    prompt_tokens: int
    max_tokens: int


@dataclass(frozen=True)
class Plan:
    """What to send: `streams` clients take the next of `asks` as soon as they have their answer."""

    url: str
    streams: int
    asks: list[Ask]
    headers: dict[str, str] = field(default_factory=dict[str, str])
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_json(cls, text: str) -> Plan:
        values = json.loads(text)
        return cls(**{**values, "asks": [Ask(**ask) for ask in values["asks"]]})


@dataclass(frozen=True)
class Answer:
    """How one request went. Times are in seconds since the load began; `cached` is -1 where a server does not say."""

    asked: float
    first: float
    ended: float
    tokens: int
    cached: int
    error: str = ""


@dataclass(frozen=True)
class Result:
    """All answers, and the CPU time that asking for them took."""

    answers: list[Answer]
    wall: float
    cpu: float

    @classmethod
    def from_json(cls, text: str) -> Result:
        values = json.loads(text)
        return cls(**{**values, "answers": [Answer(**answer) for answer in values["answers"]]})


class _Stream:
    """Reads the events of one answer as they come."""

    def __init__(self) -> None:
        self.first = 0.0
        self._tail = b""

    def feed(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if not self.first and any(_text(event) for event in _events(self._tail)):
            self.first = time.perf_counter()

    def outcome(self, ask: Ask) -> tuple[int, int, str]:
        """The tokens that came, those of the prompt that were not computed again, and what was wrong."""
        usage: dict[str, Any] = {}
        reason = None
        for event in _events(self._tail):
            if "error" in event:
                return 0, -1, str(event["error"])[:200]
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                reason = choice.get("finish_reason") or reason
        if reason != "length":
            return 0, -1, f"ended with {reason}, not by its length"
        # A server that streams no usage has given what was asked for, if it says that the length ended it.
        tokens = usage.get("completion_tokens", ask.max_tokens)
        seen = usage.get("prompt_tokens", ask.prompt_tokens)
        if tokens != ask.max_tokens or seen != ask.prompt_tokens:
            wanted = f"{ask.prompt_tokens} and {ask.max_tokens}"
            return tokens, -1, f"counted {seen} tokens of prompt and {tokens} of answer, not {wanted}"
        return tokens, (usage.get("prompt_tokens_details") or {}).get("cached_tokens", -1), ""


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    """Every event that is in there whole."""
    for line in data.split(b"\n")[:-1]:
        if line.startswith(b"data: {"):
            try:
                yield json.loads(line[6:])
            except ValueError:
                continue


def _text(event: dict[str, Any]) -> bool:
    return any(choice.get("text") for choice in event.get("choices", ()))


async def _ask(session: aiohttp.ClientSession, plan: Plan, ask: Ask, began: float) -> Answer:
    body = {
        "model": "bench",
        "prompt": ask.prompt,
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **plan.extra,
    }
    stream = _Stream()
    asked = time.perf_counter()
    tokens, cached = 0, -1
    try:
        async with session.post(f"{plan.url}/v1/completions", json=body) as response:
            if response.status != 200:
                error = f"{response.status}: {(await response.text())[:200]}"
            else:
                async for data in response.content.iter_any():
                    stream.feed(data)
                tokens, cached, error = stream.outcome(ask)
    except (aiohttp.ClientError, TimeoutError) as problem:
        error = repr(problem)[:200]
    ended = time.perf_counter()
    first = stream.first or ended
    return Answer(asked - began, first - began, ended - began, tokens, cached, error)


async def _load(plan: Plan) -> Result:
    waiting = iter(plan.asks)
    answers: list[Answer] = []
    connector = aiohttp.TCPConnector(limit=plan.streams, force_close=True)
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=plan.headers) as session:
        cpu, began = _cpu(), time.perf_counter()

        async def client() -> None:
            for ask in waiting:
                answers.append(await _ask(session, plan, ask, began))

        async with asyncio.TaskGroup() as clients:
            for _ in range(plan.streams):
                clients.create_task(client())
        return Result(answers, time.perf_counter() - began, _cpu() - cpu)


def _cpu() -> float:
    used = os.times()
    return used.user + used.system


def main() -> None:
    plan = Plan.from_json(sys.stdin.read())
    result = uvloop.run(_load(plan))
    sys.stdout.write(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
