"""A worker as a process of its own, and how tests ask it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp

from llama_orch.contract.process import FAILURE_FILE, WorkerFailure
from tests.support.ports import free_port

TOKEN = "an-inference-token-of-enough-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
AGENT = Path(__file__).parents[2] / "agent"
START_SECONDS = 120.0


class WorkerProcess:
    """`python -m llama_orch.worker` with an order of its own."""

    def __init__(self, folder: Path, model: Path, *, limit_memory: int | None = None, **order: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = order.pop("port", None) or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        spec = {
            "worker_id": "w1",
            "model_path": str(model),
            "model_name": "demo",
            "model_ref": f"file:{model}",
            "host": "127.0.0.1",
            "port": self.port,
            "backend": "cpu",
            "threads": 1,
            **order,
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        self.log = folder / "worker.log"
        reading, writing = os.pipe()
        self.token_pipe = f"pipe:[{os.fstat(reading).st_ino}]"
        os.write(writing, TOKEN.encode())
        os.close(writing)
        arguments = ["-m", "llama_orch.worker", "--spec", str(folder / "spec.json"), "--token-fd", str(reading)]

        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, "PYTHONPATH": str(AGENT)},
                pass_fds=[reading],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        os.close(reading)
        if limit_memory is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_AS, (limit_memory, limit_memory))

    async def until(self, *statuses: str) -> dict[str, Any]:
        """The first health answer with one of these statuses."""
        deadline = time.monotonic() + START_SECONDS
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline:
                assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log.read_text()}"
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self.url}/health") as answer:
                        health = await answer.json()
                        if health["status"] in statuses:
                            return health
                await asyncio.sleep(0.02)
        raise AssertionError(f"not {statuses} within {START_SECONDS} s: {self.log.read_text()}")

    async def ended(self, seconds: float = 60.0) -> int:
        """The exit code."""
        return await asyncio.to_thread(self.process.wait, seconds)

    def failure(self) -> WorkerFailure:
        return WorkerFailure.model_validate_json((self.folder / FAILURE_FILE).read_bytes())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


Start = Callable[..., WorkerProcess]


def session_of(worker: WorkerProcess) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(worker.url, headers=AUTH, timeout=aiohttp.ClientTimeout(60))


async def post(session: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with session.post(path, json=body) as answer:
        return answer.status, await answer.json()


async def complete(session: aiohttp.ClientSession, prompt: str, **body: Any) -> str:
    status, answer = await post(session, "/v1/completions", prompt=prompt, **body)
    assert status == 200, answer
    return answer["choices"][0]["text"]


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in answer.content:
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


async def metric(session: aiohttp.ClientSession, series: str) -> float:
    async with session.get("/metrics") as answer:
        for line in (await answer.text()).splitlines():
            name, _, value = line.rpartition(" ")
            if name == f"llama_orch_worker_{series}":
                return float(value)
    raise AssertionError(f"no series {series}")


async def until_metric(session: aiohttp.ClientSession, series: str, value: float, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while (seen := await metric(session, series)) != value:
        assert time.monotonic() < deadline, f"{series} is {seen}, not {value}"
        await asyncio.sleep(0.01)
