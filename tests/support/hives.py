"""A real hive agent as a process of its own, for tests: started, killed, started again, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from llama_orch.hive import stop_workers
from llama_orch.hive.workers import process_table

from .engine import kept_self_test
from .ports import free_port

API_TOKEN = "api-token-of-the-tests"
INFERENCE_TOKEN = "inference-token-of-the-tests"
ROOT = Path(__file__).parents[2]
WAIT_S = 120.0


class HiveProcess:
    """One hive in a folder. Each has ports of its own, so that several tests may run at once."""

    def __init__(self, folder: Path, *, environment: dict[str, str] | None = None, **settings: object) -> None:
        self.folder = folder
        self._environment = environment or {}
        self.state_dir = folder / "state"
        self.models_dir = folder / "models"
        self.log_dir = folder / "log"
        self.port, first = free_port(), free_port(span=21)
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings: dict[str, object] = {
            "hive_id": "tested",
            "host": "127.0.0.1",
            "port": self.port,
            "state_dir": str(self.state_dir),
            "models_dir": str(self.models_dir),
            "log_dir": str(self.log_dir),
            "api_token_file": str(self._secret("api-token", API_TOKEN)),
            "inference_token_file": str(self._secret("inference-token", INFERENCE_TOKEN)),
            "worker_port_min": first,
            "worker_port_max": first + 20,
            "reserve_ram_bytes": 0,
            "reserve_disk_bytes": 1,
            **settings,
        }
        self.agent: subprocess.Popen[bytes] | None = None

    def _secret(self, name: str, value: str) -> Path:
        path = self.folder / name
        path.write_text(value + "\n")
        path.chmod(0o600)
        return path

    async def start(self) -> None:
        """Start the agent and wait until it answers."""
        if "PYTHONPATH" not in self._environment:
            kept_self_test.give(self.state_dir)
        config = self.folder / "hive.toml"
        config.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in self.settings.items()))
        with (self.folder / "agent.log").open("ab") as output:
            self.agent = subprocess.Popen(  # noqa: ASYNC220  it takes a millisecond
                [sys.executable, "-m", "llama_orch.hive", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": str(ROOT / "agent"), **self._environment},
            )

        async def answers() -> bool:
            assert self.agent is not None
            assert self.agent.poll() is None, self.log()
            with contextlib.suppress(aiohttp.ClientError):
                return (await self.call("GET", "/health"))[0] == 200
            return False

        await until(answers, "the agent answers")

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal the agent and wait for its end."""
        assert self.agent is not None
        self.agent.send_signal(number)
        await asyncio.to_thread(self.agent.wait, 30)

    async def close(self) -> None:
        """Take away everything that runs."""
        if "PYTHONPATH" not in self._environment:
            kept_self_test.take(self.state_dir)
        if self.agent is not None and self.agent.poll() is None:
            self.agent.kill()
            self.agent.wait(30)
        if await stop_workers.stop_all(self.state_dir, drain_s=0, term_s=5):
            raise AssertionError("workers are left")

    def log(self) -> str:
        """What the agent printed."""
        return (self.folder / "agent.log").read_text()

    async def call(self, method: str, path: str, *, token: str = API_TOKEN, **request: Any) -> tuple[int, Any]:
        """Status and JSON of one request."""
        headers = {"Authorization": f"Bearer {token}"}
        timeout = aiohttp.ClientTimeout(total=WAIT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, self.url + path, headers=headers, **request) as answer,
        ):
            return answer.status, await answer.json(content_type=None)

    async def ok(self, method: str, path: str, **request: Any) -> Any:
        """The JSON of a request that must succeed."""
        status, body = await self.call(method, path, **request)
        assert status == 200, body
        return body

    async def spawn(self, model_ref: str, **fields: object) -> Any:
        """Ask for a worker; answers what the hive answered at once."""
        return await self.ok("POST", "/api/v1/workers", json={"model_ref": model_ref, "backend": "cpu", **fields})

    async def worker(self, worker_id: str, *, status: str | None = None, **other: object) -> Any:
        """A worker, once it has that status and those values."""
        found: dict[str, Any] = {}

        async def there() -> bool:
            found.update(await self.ok("GET", f"/api/v1/workers/{worker_id}"))
            return (status is None or found["status"] == status) and all(found[k] == v for k, v in other.items())

        await until(there, lambda: f"worker becomes {status} {other}: {found}\n{self.log()}")
        return found

    async def idle(self, model_ref: str, **fields: object) -> Any:
        """A worker that serves."""
        return await self.worker((await self.spawn(model_ref, **fields))["id"], status="idle")

    async def download(self, download_id: str, *statuses: str) -> Any:
        """A download, once it has one of those statuses."""
        found: dict[str, Any] = {}

        async def there() -> bool:
            found.update(await self.ok("GET", f"/api/v1/models/downloads/{download_id}"))
            return found["status"] in statuses

        await until(there, lambda: f"download becomes {statuses}: {found}\n{self.log()}")
        return found

    def processes(self) -> dict[str, list[process_table.Process]]:
        """The processes of this hive's workers that live."""
        return process_table.find(self.state_dir)


async def complete(url: str, prompt: str, max_tokens: int) -> str:
    """A worker's answer to a prompt."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {INFERENCE_TOKEN}"}) as session,
        session.post(f"{url}/v1/completions", json=body, timeout=aiohttp.ClientTimeout(total=WAIT_S)) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return (await answer.json())["choices"][0]["text"]


async def until(condition: Callable[[], Awaitable[bool]], what: str | Callable[[], str]) -> None:
    """Wait for a condition, at most a minute."""
    deadline = time.monotonic() + WAIT_S
    while not await condition():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        await asyncio.sleep(0.1)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


@contextlib.asynccontextmanager
async def a_hive(
    folder: Path, *, environment: dict[str, str] | None = None, **settings: object
) -> AsyncIterator[HiveProcess]:
    """A hive that answers, and no process of it afterwards."""
    hive = HiveProcess(folder, environment=environment, **settings)
    try:
        await hive.start()
        yield hive
    finally:
        await hive.close()
