"""A model's file is read by a process that may be ended, and what it cannot be read for is remembered."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from llama_orch.base import backoff
from llama_orch.demo_model import write_demo_model
from llama_orch.hive.models import facts, reading
from llama_orch.hive.problems import Failed
from tests.support.gguf import lying_models as lies
from tests.support.gguf.models import split_model


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that a process was started for."""
    seen: list[str] = []
    really = reading.ask

    async def note(module: str, path: str, **options: Any) -> facts.ModelFacts:
        seen.append(Path(path).name)
        return await really(module, path, **options)

    monkeypatch.setattr(reading, "ask", note)
    monkeypatch.setattr(reading, "remembered", {})
    return seen


async def test_the_facts_are_those_that_are_read_here(tmp_path: Path, read: list[str]):
    path = write_demo_model(tmp_path / "demo.gguf")
    parts = split_model(tmp_path / "parts")
    for one in (path, parts[0]):
        assert await reading.facts(one, tmp_path) == facts.read(one)
        assert await reading.facts(one, tmp_path) == facts.read(one)
    assert read == ["demo.gguf", parts[0].name], "what is known is not read again"
    write_demo_model(path)
    await reading.facts(path, tmp_path)
    assert read[2:] == ["demo.gguf"], "a file that was changed is"


async def test_a_missing_file_is_looked_for_each_time(tmp_path: Path, read: list[str]):
    for _ in range(2):
        with pytest.raises(Failed) as failed:
            await reading.facts(tmp_path / "m.gguf", tmp_path)
        assert failed.value.problem.code == "model_not_found"
    assert len(read) == 2
    assert not (tmp_path / reading.FILE).exists()


async def test_a_damaged_file_is_read_once_also_by_the_next_agent(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
):
    path = lies.a_million_dimensions(tmp_path / "m.gguf")
    for _ in range(3):
        with pytest.raises(Failed, match="60000 dimensions"):
            await reading.facts(path, tmp_path)
        monkeypatch.setattr(reading, "remembered", {})
    assert read == ["m.gguf"]
    write_demo_model(path)
    assert (await reading.facts(path, tmp_path)).architecture == "llama"


async def test_the_agent_goes_on_while_a_file_takes_long_and_ends_it(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
):
    # A process that does not end by itself.
    monkeypatch.setattr(reading, "MODULE", "http.server")
    monkeypatch.setattr(reading, "LONGEST_S", 0.5)
    monkeypatch.setattr(reading, "GRACE_S", 0.0)
    path = tmp_path / "0"
    path.write_bytes(b"GGUF")
    began = time.monotonic()
    longest = 0.0

    async def turns() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    turning = asyncio.create_task(turns())
    for _ in range(2):
        with pytest.raises(Failed, match="takes too long"):
            await reading.facts(path, tmp_path)
    turning.cancel()
    assert read == ["0"]
    assert time.monotonic() - began < 10
    assert longest < 2
    assert [one["path"] for one in json.loads((tmp_path / reading.FILE).read_text())] == [str(path)]


async def test_a_reader_that_was_killed_says_nothing_of_the_file(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "killed_reader.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(reading, "MODULE", "killed_reader")
    monkeypatch.setattr(backoff, "delay", lambda _: 0)
    path = write_demo_model(tmp_path / "demo.gguf")
    with pytest.raises(Failed) as failed:
        await reading.facts(path, tmp_path)
    assert (failed.value.problem.code, failed.value.retry) == ("model_not_read", True)
    assert not (tmp_path / reading.FILE).exists()
    monkeypatch.undo()
    assert (await reading.facts(path, tmp_path)).architecture == "llama"


async def test_the_costliest_header_within_all_bounds_is_read_in_time(tmp_path: Path, read: list[str]):
    assert (await reading.facts(lies.slow_to_judge(tmp_path / "m.gguf"), tmp_path)).blocks == 1


async def test_no_more_is_remembered_than_a_hundred(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch):
    async def damaged(_: str, path: str, **__: object) -> facts.ModelFacts:
        raise Failed("model_unreadable", path)

    monkeypatch.setattr(reading, "ask", damaged)
    for number in range(105):
        (tmp_path / f"{number}.gguf").touch()
        with pytest.raises(Failed):
            await reading.facts(tmp_path / f"{number}.gguf", tmp_path)
    kept = json.loads((tmp_path / reading.FILE).read_text())
    assert [Path(kept[index]["path"]).name for index in (0, -1)] == ["5.gguf", "104.gguf"]
    (tmp_path / reading.FILE).write_text("[{]")
    with pytest.raises(Failed):
        await reading.facts(tmp_path / "0.gguf", tmp_path)
