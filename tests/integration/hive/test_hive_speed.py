"""Tokens per second, as the hive tells them of its workers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.gguf.models import slow_model
from tests.support.hives import HiveProcess, a_hive, complete, until


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[HiveProcess]:
    async with a_hive(tmp_path) as running:
        yield running


async def _speed(hive: HiveProcess) -> float:
    (worker,) = (await hive.ok("GET", "/api/v1/workers"))["workers"]
    return worker["tokens_per_second"]


async def _total(hive: HiveProcess) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{hive.url}/metrics") as answer:
        found = re.search(r"^llama_orch_hive_generated_tokens_per_second (\S+)$", await answer.text(), re.MULTILINE)
    assert found
    return float(found[1])


async def test_a_worker_has_a_speed_while_it_answers(hive: HiveProcess, tmp_path: Path):
    worker = await hive.idle(f"file:{slow_model(tmp_path / 'slow.gguf')}")
    assert await _speed(hive) == await _total(hive) == 0
    answering = asyncio.create_task(complete(worker["url"], "A", 400))

    async def goes() -> bool:
        return await _speed(hive) > 0

    async def stands() -> bool:
        return await _speed(hive) == 0

    await until(goes, "tokens are generated")
    assert await _total(hive) > 0
    os.kill(worker["pid"], signal.SIGSTOP)
    await until(stands, "a worker that does not answer has no speed")
    os.kill(worker["pid"], signal.SIGCONT)
    await until(goes, "it goes on")
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
