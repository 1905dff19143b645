"""Where the disk with the models hangs, so do all common threads: workers are watched, ended and written down."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llama_orch.hive.looking import look
from llama_orch.hive.ordered_writes import OrderedWrites
from llama_orch.hive.workers import ending, launch


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_processes_are_looked_at_while_all_common_threads_hang(tmp_path: Path, released: threading.Event):
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    hanging = loop.run_in_executor(None, released.wait)
    async with asyncio.timeout(30):
        await ending.end(tmp_path, "w1", drain_s=0, term_s=0)
        assert await launch.left_over(tmp_path / "w1", tmp_path) is None
        await OrderedWrites().run("w1", (tmp_path / "written").touch)
        assert await look(pow, 2, 5, mod=7) == 4
    assert (tmp_path / "written").exists()
    assert not hanging.done()
    released.set()
    await hanging


async def test_writes_of_one_thing_keep_their_order_and_others_go_on_beside_them(released: threading.Event):
    writes, seen = OrderedWrites(), list[str]()

    def slow() -> None:
        released.wait(30)
        seen.append("first")

    waiting = asyncio.create_task(writes.run("a", slow))
    await asyncio.sleep(0)
    writes.begin("a", lambda: seen.append("second"))
    waiting.cancel()
    await writes.run("b", lambda: seen.append("other"))
    assert seen == ["other"]
    await writes.settled("a", within_s=0.01)
    assert seen == ["other"], "it is not waited for without end"
    released.set()
    await writes.settled()
    assert seen == ["other", "first", "second"]


async def test_a_write_that_fails_is_told_and_the_next_one_is_made(caplog: pytest.LogCaptureFixture):
    writes, seen = OrderedWrites(), list[str]()

    def full() -> None:
        raise OSError("No space left on device")

    writes.begin_or_tell("a", full, "the record cannot be written")
    with pytest.raises(OSError, match="No space"):
        await writes.run("a", full)
    await writes.run("a", lambda: seen.append("next"))
    assert seen == ["next"]
    assert "the record cannot be written: No space left" in caplog.text
