"""One test host as a hive: its power and line, its API, and the processes on it as this machine's root sees them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from llama_orch.hive.workers import process_table
from tests.hosts import nspawn
from tests.hosts.host import Host

T = TypeVar("T")
UNIT = "llama-orch-hive"
STATE_DIR = "/var/lib/llama-orch/data"
AGENT = "/llama-orch-hive"
PORT = 8081
CALL_S = 60.0


@dataclass(frozen=True)
class HostProcess:
    """A process of the host: `pid` is this machine's number of it, `inner` the host's."""

    pid: int
    inner: int
    is_shim: bool

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens where it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)


@dataclass(frozen=True)
class Running:
    """What of the hive runs on the host: processes by worker, and the agents, of which there is to be one."""

    workers: dict[str, list[HostProcess]]
    agents: list[HostProcess]
    strays: list[str]

    def served_by(self) -> dict[str, list[int]]:
        """The host's own numbers of the workers' processes, without their shims."""
        return {key: sorted(one.inner for one in many if not one.is_shim) for key, many in self.workers.items()}


class HostHive:
    """A hive on a test host. `token_file` is where the queen keeps its token."""

    def __init__(self, host: Host, token_file: Path) -> None:
        self.host = host
        self.name = host.name
        self._token_file = token_file

    @property
    def state_dir(self) -> Path:
        """The running host's state folder, as this machine's root sees it."""
        return self.host.root / STATE_DIR.lstrip("/")

    async def do(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Do something with the host that takes its time."""
        return await asyncio.to_thread(work, *arguments, **named)

    async def call(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        """Status and JSON of one request to the hive."""
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}
        timeout = aiohttp.ClientTimeout(total=CALL_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, f"http://{self.host.address}:{PORT}{path}", headers=headers, **request) as answer,
        ):
            return answer.status, await answer.json(content_type=None)

    async def workers(self) -> dict[str, Any]:
        """What the hive tells of workers, by name."""
        status, body = await self.call("GET", "/api/v1/workers")
        assert status == 200, body
        return {worker["name"] or worker["id"]: worker for worker in body["workers"]}

    def running(self) -> Running:
        """What of the hive runs now, from the process table; nothing while the host is off."""
        workers: dict[str, list[HostProcess]] = {}
        agents: dict[HostProcess, int] = {}
        strays: list[str] = []
        first = nspawn.leader(self.host.group)
        for pid in nspawn.pids(self.host.group):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                inner, parent = nspawn.namespace_ids(pid)[-1], _parent(pid)
            except (OSError, IndexError):
                continue
            found = HostProcess(pid, inner, process_table.SHIM in words)
            if worker_id := _worker_of(words):
                workers.setdefault(worker_id, []).append(found)
            elif any(word.endswith(AGENT) for word in words[:2]):
                agents[found] = parent
            elif parent == first and any("llama_orch" in word for word in words):
                strays.append(f"process {inner} ({' '.join(words)[:80]}) has lost its parent")
        # What an agent starts looks like the agent, until it has become what it is to be.
        pids = {one.pid for one in agents}
        return Running(workers, [one for one, parent in agents.items() if parent not in pids], strays)

    async def agent(self) -> HostProcess:
        """The agent; raises AssertionError where there is not exactly one."""
        agents = (await self.do(self.running)).agents
        assert len(agents) == 1, f"{self.name} has agents {agents}"
        return agents[0]

    async def processes_of(self, worker: dict[str, Any]) -> list[HostProcess]:
        """The processes of a worker that the hive told of, its shim too."""
        return (await self.do(self.running)).workers.get(worker["id"], [])

    async def systemctl(self, *words: str) -> None:
        """Have systemd do something with the agent's service."""
        await self.do(self.host.run, ["systemctl", *words, UNIT], check=True)

    def log(self) -> str:
        """The end of the agent's log; empty while the host is off."""
        with contextlib.suppress(Exception):
            return self.host.run(f"journalctl --no-pager --output=cat --lines=40 --unit={UNIT}").stdout
        return ""


def _worker_of(words: list[str]) -> str | None:
    if process_table.SHIM not in words and process_table.WORKER not in words:
        return None
    home = f"{STATE_DIR}/workers/"
    return next((word.removeprefix(home).partition("/")[0] for word in words if word.startswith(home)), None)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
