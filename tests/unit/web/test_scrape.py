from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry, Gauge, Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from llama_orch.contract.errors import NotReady
from llama_orch.web import scrape
from llama_orch.web.scrape import Scrape


class Measured:
    """A registry with one gauge that counts how often it was read, and how many read at the same time."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.value = 0
        self.begun = asyncio.Event()
        self.renderings = self.at_once = self.most_at_once = 0
        self._gauge = Gauge("value", "A value", registry=self.registry)

    async def refresh(self) -> None:
        self.renderings += 1
        self.at_once += 1
        self.begun.set()
        self.most_at_once = max(self.at_once, self.most_at_once)
        self._gauge.set(self.value)
        await asyncio.sleep(0)
        self.at_once -= 1


async def test_many_that_ask_at_once_share_few_renderings():
    measured = Measured()
    scraped = Scrape(measured.registry, measured.refresh)
    answers = await asyncio.gather(*(scraped.text() for _ in range(50)))
    assert (len(set(answers)), measured.renderings) == (1, 1)


async def test_one_answer_never_misses_what_was_so_when_it_was_asked_for():
    measured = Measured()
    scraped = Scrape(measured.registry, measured.refresh)
    for number in range(20):
        measured.value = number
        assert f"value {float(number)}".encode() in await scraped.text()


async def test_who_asks_during_a_rendering_gets_the_next_one_and_none_overlap():
    measured = Measured()
    scraped = Scrape(measured.registry, measured.refresh)
    first = asyncio.create_task(scraped.text())
    await measured.begun.wait()
    measured.value = 7
    assert b"value 7.0" in await scraped.text()
    assert b"value 0.0" in await first
    assert measured.most_at_once == 1


async def test_renderings_leave_most_of_the_time_to_others(monkeypatch: pytest.MonkeyPatch):
    measured = Measured()
    clock, pauses = [100.0], []
    monkeypatch.setattr(scrape.time, "thread_time", lambda: clock.append(clock[-1] + 0.05) or clock[-1])
    monkeypatch.setattr(scrape.time, "monotonic", lambda: 10.0)
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(round(seconds, 3))
        await sleep(0)

    monkeypatch.setattr(scrape.asyncio, "sleep", note)
    scraped = Scrape(measured.registry, None)
    await scraped.text()
    await scraped.text()
    assert pauses == [-10.0, 0.4], "four times the 100 ms that reading and rendering took"


async def test_the_text_is_made_beside_the_loop():
    threads: list[int] = []

    class Collected(Collector):
        def collect(self) -> Iterable[Metric]:
            threads.append(threading.get_ident())
            return [GaugeMetricFamily("value", "A value", value=len(threads))]

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collected())
    assert b"value 1.0" in await Scrape(registry, None).text()
    assert threads and threading.get_ident() not in threads


async def test_a_rendering_that_hangs_or_fails_ends_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scrape, "_REFRESH_SECONDS", 0.05)
    hangs = True

    async def refresh() -> None:
        if hangs:
            await asyncio.Event().wait()

    scraped = Scrape(CollectorRegistry(), refresh)
    with pytest.raises(NotReady):
        await scraped.text()
    hangs = False
    assert await scraped.text() == b""
