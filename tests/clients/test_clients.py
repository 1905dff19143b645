"""Each client's script, run by its own Python or Node, against a worker of the real model or whatever is named.

`LLAMA_ORCH_CLIENTS_BASE_URL`, `…_API_KEY` and `…_MODEL` name another service that speaks OpenAI's API; it must serve a
chat model that knows the capital of France.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients import installed
from tests.support.gguf.real_model import real_model
from tests.support.worker_process import TOKEN, WorkerProcess

SCRIPTS = Path(__file__).with_name("scripts")
# With the lock that each needs; those for Node have one together.
PYTHON = {
    "openai_python": installed.NEWEST,
    "langchain_python": installed.NEWEST,
    "litellm_python": installed.NEWEST,
    "agents_python": installed.NEWEST,
    "instructor_python": "instructor",
}
NODE = ("openai_node", "ai_node")
SLOTS, CONTEXT = 8, 2048
# All of them share one thread of the engine, and the tests few cores.
SCRIPT_SECONDS = 600.0
GIVEN = "LLAMA_ORCH_CLIENTS_"


@dataclass(frozen=True)
class Served:
    """Where a model is served, with which key, and under which name."""

    base_url: str
    key: str
    model: str

    def environment(self, *, alone: bool) -> dict[str, str]:
        """What a script gets: nothing of ours that a client would read by itself."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        told = {"CLIENTS_BASE_URL": self.base_url, "CLIENTS_API_KEY": self.key, "CLIENTS_MODEL": self.model}
        told["CLIENTS_ALONE"] = "yes" if alone else "no"
        # What models cost is looked up in the web otherwise.
        return {**kept, **told, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Ended:
    """How a script ended: why each check failed, empty where it did not, and what it said besides."""

    checks: dict[str, str]
    said: str


def checks_of(script: str) -> list[str]:
    """The names of a script's checks, read without running it."""
    path = next(SCRIPTS.glob(f"{script}.*"))
    return re.findall(r"^(?:def|  async) (check_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)


CHECKS = [(script, check) for script in (*PYTHON, *NODE) for check in checks_of(script)]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if url := os.environ.get(f"{GIVEN}BASE_URL"):
        yield Served(url, os.environ[f"{GIVEN}API_KEY"], os.environ[f"{GIVEN}MODEL"])
        return
    folder = tmp_path_factory.mktemp("worker")
    worker = WorkerProcess(folder, real_model(), slots=SLOTS, ctx_per_slot=CONTEXT, threads=1)
    try:
        asyncio.run(worker.until("idle"))
        yield Served(f"{worker.url}/v1", TOKEN, "demo")
    finally:
        worker.kill()


@pytest.fixture(scope="module")
def ended(request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """How the scripts ended whose checks were chosen. All run at once, then what must run alone one after the other."""
    here = [item for item in request.session.items if item.path == request.path]
    wanted = dict.fromkeys(item.callspec.params["script"] for item in here if hasattr(item, "callspec"))  # pyright: ignore[reportAttributeAccessIssue]
    commands = [command(script, tmp_path_factory.mktemp(script)) for script in wanted]
    with ThreadPoolExecutor(len(commands)) as threads:
        together = list(threads.map(lambda one: run(one, served, alone=False), commands))
    alone = [run(one, served, alone=True) for one in commands]
    return {
        script: Ended(beside.checks | by_itself.checks, beside.said + by_itself.said)
        for script, beside, by_itself in zip(wanted, together, alone, strict=True)
    }


def command(script: str, folder: Path) -> list[Path]:
    if script in PYTHON:
        return [installed.python_with(PYTHON[script]), SCRIPTS / f"{script}.py"]
    # Node looks for packages beside the script.
    for path in SCRIPTS.glob("*.mjs"):
        shutil.copy(path, folder)
    (folder / "node_modules").symlink_to(installed.node_modules())
    return [installed.node(), folder / f"{script}.mjs"]


def run(arguments: list[Path], served: Served, *, alone: bool) -> Ended:
    checks: dict[str, str] = {}
    said: list[str] = []
    with subprocess.Popen(
        arguments,
        env=served.environment(alone=alone),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        too_long = threading.Timer(SCRIPT_SECONDS, process.kill)
        too_long.start()
        for line in process.stdout or ():
            if line.startswith('{"check"'):
                told = json.loads(line)
                checks[told["check"]] = told["why"]
            else:
                said.append(line)
        too_long.cancel()
    return Ended(checks, "".join(said))


@pytest.mark.parametrize(("script", "check"), CHECKS, ids=[f"{script}-{check[6:]}" for script, check in CHECKS])
def test_a_client_is_served(ended: dict[str, Ended], script: str, check: str):
    found = ended[script]
    assert check in found.checks, f"{script} ended before it: {found.said[-4000:]}"
    assert not found.checks[check], found.checks[check]
