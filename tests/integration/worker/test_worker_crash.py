"""Workers that die by real signals and real faults: what the hive and the command say of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from llama_orch.demo_model import DEMO_SENTENCE
from llama_orch.hive.workers.ending import ADVICE, BEFORE_READY, WHILE_SERVING
from llama_orch.worker.llama import backends
from tests.support.gguf import sparse_models
from tests.support.gguf.models import slow_model
from tests.support.hives import ROOT, HiveProcess, a_hive, until

TRIES_OUT = "trying out the model with"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slow_model(tmp_path_factory.mktemp("slow") / "slow.gguf")


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[HiveProcess]:
    async with a_hive(tmp_path) as running:
        yield running
    assert running.processes() == {}


class Chat:
    """`llama-orch chat` that asks the hive's worker one question."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def begin(cls, hive: HiveProcess) -> Chat:
        options = ("--hive", hive.url, "--token-file", str(hive.folder / "api-token"))
        tokens = ("--inference-token-file", str(hive.folder / "inference-token"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llama_orch.cli", "chat", "Hi", *options, *tokens),
            cwd=hive.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT / "agent")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return cls(process)

    async def first_text(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.read(1), 60)).decode()

    async def ended(self) -> tuple[int | None, str]:
        """Its exit status, and what it printed of errors."""
        _, printed = await asyncio.wait_for(self.process.communicate(), 60)
        return self.process.returncode, printed.decode()


async def crashed(hive: HiveProcess, worker_id: str, restarts: int) -> Any:
    """The worker's last error, once the hive counts so many ends."""
    return (await hive.worker(worker_id, restarts=restarts))["last_error"]


@pytest.mark.parametrize("number", [signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
async def test_a_worker_that_dies_says_what_of_and_when(hive: HiveProcess, slow: Path, number: signal.Signals):
    worker_id = (await hive.spawn(f"file:{slow}"))["id"]
    log = hive.log_dir / f"worker-{worker_id}.log"

    async def tries_out() -> bool:
        return log.exists() and TRIES_OUT in log.read_text()

    await until(tries_out, "the worker tries out its model")
    os.kill((await hive.worker(worker_id))["pid"], number)
    error = await crashed(hive, worker_id, restarts=1)
    how = f"the worker's process was ended by signal {number.value} ({number.name})"
    what = f" (model slow.gguf, {backends.cpu_libraries()[0].name})"
    assert (error["code"], error["message"]) == ("killed", f"{how}{BEFORE_READY}{what}")
    assert error["what_to_do"] == f"{ADVICE[number.name]}; its log is in the hive's log_dir"

    worker = await hive.worker(worker_id, status="idle")
    chat = await Chat.begin(hive)
    assert await chat.first_text() == DEMO_SENTENCE[0]
    os.kill(worker["pid"], number)
    status, printed = await chat.ended()
    assert (status, printed.splitlines()) == (
        1,
        [
            f"error: worker {worker_id} gave no whole answer: {how}{WHILE_SERVING}{what}",
            f"{ADVICE[number.name]}; its log is in the hive's log_dir",
            "It is started again by itself: ask again in a moment.",
        ],
    )
    assert (await crashed(hive, worker_id, restarts=2))["message"] == f"{how}{WHILE_SERVING}{what}"


async def test_llama_cpp_says_why_it_gives_up(hive: HiveProcess, tmp_path: Path):
    model = sparse_models.bert(tmp_path / "bert.gguf", aborts=True)
    worker_id = (await hive.spawn(f"file:{model}"))["id"]
    error = await crashed(hive, worker_id, restarts=1)
    assert f"(SIGABRT){BEFORE_READY} (model bert.gguf, " in error["message"]
    file, _, reason = error["message"].rpartition("): ")[2].partition(":")
    assert file == "binary-ops.cpp" and "binary_op: unsupported types" in reason and "src1: q8_0" in reason
    assert error["what_to_do"].startswith(ADVICE["SIGABRT"])


async def test_a_model_that_is_cut_short_under_its_worker(hive: HiveProcess, tmp_path: Path):
    model = slow_model(tmp_path / "cut.gguf", blocks=1)
    worker = await hive.idle(f"file:{model}")
    os.truncate(model, 4096)
    status, printed = await (await Chat.begin(hive)).ended()
    assert status == 1 and f"error: worker {worker['id']} gave no whole answer: " in printed
    # The next start finds out what it was, and may do so before the command asks.
    failed = await hive.worker(worker["id"], status="failed")
    assert (failed["last_error"]["code"], failed["restarts"]) == ("model_truncated", 1)
    assert f"ended by signal {signal.SIGBUS.value} (SIGBUS){WHILE_SERVING} (model cut.gguf, " in hive.log()
