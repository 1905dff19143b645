from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llama_orch.base import backoff
from llama_orch.contract.devices import LibraryResult
from llama_orch.hive.devices import engine_build, engine_test
from llama_orch.hive.devices.engine_test import EngineTest
from llama_orch.hive.problems import Failed

# Stands for the worker's module: says what the test wrote down for its arguments, and that it was asked.
MODULE = """
import pathlib, sys
folder = pathlib.Path(__file__).parent
name = "cuda" if "--cuda" in sys.argv else "cpu"
with (folder / "asked").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
print((folder / name).read_text())
"""


def library(name: str, result: str = "passed", backend: str = "cpu") -> dict[str, object]:
    file = f"libggml-cpu-{name}.so" if backend == "cpu" else "libggml-cuda.so"
    return {"file": file, "name": name, "backend": backend, "result": result, "reason": None, "seconds": 0.1}


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir()
        self.says("cpu", [library("haswell")])

    def says(self, name: str, found: object) -> None:
        (self.folder / name).write_text(found if isinstance(found, str) else json.dumps(found))

    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []

    @asynccontextmanager
    async def tested(self) -> AsyncIterator[EngineTest]:
        made = EngineTest(self.state, confined=True)
        made.start()
        try:
            yield made
            await made.wait()
        finally:
            await made.stop()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    (tmp_path / "self_test_of_a_test.py").write_text(MODULE)
    monkeypatch.setattr(engine_test, "MODULE", "self_test_of_a_test")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(engine_build, "has_cuda", lambda: False)
    monkeypatch.setattr(backoff, "delay", lambda _: 0)
    return World(tmp_path)


async def test_workers_get_the_library_that_passed(world: World):
    world.says("cpu", [library("sapphirerapids", "died"), library("cascadelake")])

    async with world.tested() as made:
        assert await made.cpu_library("cpu") == "libggml-cpu-cascadelake.so"

    status = made.status()
    assert [one.result for one in status.libraries] == [LibraryResult.DIED, LibraryResult.PASSED]
    assert status.tested_at is not None
    assert world.asked() == ["--json"]


async def test_another_start_of_the_same_boot_and_build_tests_nothing(world: World):
    async with world.tested() as first:
        await first.cpu_library("cpu")
    async with world.tested() as second:
        assert await second.cpu_library("cpu") == "libggml-cpu-haswell.so"

    assert second.status() == first.status()
    assert len(world.asked()) == 1


@pytest.mark.parametrize("what", ["boot", "build", "file"])
async def test_another_boot_or_build_or_a_damaged_file_tests_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
):
    async with world.tested():
        pass
    if what == "boot":
        monkeypatch.setattr(engine_test.processes, "boot_id", lambda: "another")
    elif what == "build":
        monkeypatch.setattr(engine_build, "identity", lambda: "another")
    else:
        (world.state / engine_test.FILE).write_text('{"boot_id": ')
    async with world.tested():
        pass

    assert len(world.asked()) == 2


async def test_where_none_passed_workers_are_refused_with_the_first_reason(world: World):
    world.says(
        "cpu", [{**library("haswell", "died"), "reason": "ended by signal 4 (SIGILL)"}, library("sse42", "wrong")]
    )

    async with world.tested() as made:
        with pytest.raises(Failed) as caught:
            await made.cpu_library("cpu")

    assert caught.value.problem.code == "engine_unusable"
    assert "haswell: died (ended by signal 4 (SIGILL))" in caught.value.problem.message


async def test_cuda_that_fails_takes_no_workers_and_the_cpu_goes_on(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_build, "has_cuda", lambda: True)
    world.says("cuda", [library("cuda", "died", "cuda")])

    async with world.tested() as made:
        assert await made.cpu_library("cpu") == "libggml-cpu-haswell.so"
        with pytest.raises(Failed, match="does not compute"):
            await made.cpu_library("cuda")
        assert made.failed("cuda") is not None and made.failed("cpu") is None

    assert world.asked() == ["--json", "--json --cuda libggml-cpu-haswell.so --confined"]


@pytest.mark.parametrize("said", ["", "Traceback", "[]"])
async def test_a_test_that_tells_nothing_refuses_nobody_and_is_not_kept(world: World, said: str):
    world.says("cpu", said)

    async with world.tested() as made:
        assert await made.cpu_library("cpu") is None

    assert made.status().tested_at is None
    assert not (world.state / engine_test.FILE).exists()


async def test_a_test_that_was_killed_half_way_is_made_again(world: World):
    (world.folder / "self_test_of_a_test.py").write_text(
        "import os, pathlib, signal\n"
        "killed = pathlib.Path(__file__).with_name('killed')\n"
        f"print({json.dumps([library('haswell')])!r}[:30 if not killed.exists() else None], flush=True)\n"
        "if not killed.exists():\n"
        "    killed.touch()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    async with world.tested() as made:
        assert await made.cpu_library("cpu") == "libggml-cpu-haswell.so"


async def test_what_could_not_be_tried_is_used_and_tried_again(world: World):
    world.says("cpu", [library("haswell", "not_tested")])

    async with world.tested() as made:
        assert await made.cpu_library("cpu") == "libggml-cpu-haswell.so"

    assert not (world.state / engine_test.FILE).exists()


async def test_a_state_folder_that_cannot_be_written_stops_nothing(world: World):
    (world.state / engine_test.FILE).mkdir()

    async with world.tested() as made:
        assert await made.cpu_library("cpu") == "libggml-cpu-haswell.so"
