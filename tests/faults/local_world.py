"""A real hive with workers and a real queen, what should run there, and what is wrong about it at a moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from llama_orch.demo_model import expected_completion, write_demo_model
from tests.support.hives import API_TOKEN, HiveProcess, complete
from tests.support.queen_process import Api, QueenProcess

from .holding import Holding
from .wall_clock import WallClock

NODE = "tested"
WANTED = ("one", "two", "three")
LOG_END = 3000
_INVENTORY = """\
all:
  children:
    hives:
      hosts:
        tested:
          ansible_connection: local
          ansible_python_interpreter: "{{ ansible_playbook_python }}"
          hive_address: 127.0.0.1
          hive_port: %d
"""
_PLAYBOOK = """\
- name: Take a moment
  ansible.builtin.wait_for:
    timeout: 1
"""


class LocalWorld:
    """What faults happen to."""

    def __init__(self, folder: Path) -> None:
        for name in ("hive", "queen", "hive-clock", "queen-clock"):
            (folder / name).mkdir()
        self.clocks = {"hive": WallClock(folder / "hive-clock"), "queen": WallClock(folder / "queen-clock")}
        self.hive = HiveProcess(folder / "hive", environment=self.clocks["hive"].environment)
        self.queen = QueenProcess(folder / "queen", environment=self.clocks["queen"].environment)
        self.model = f"file:{write_demo_model(folder / 'demo.gguf')}"
        self.broken_model = folder / "broken.gguf"
        self.broken_model.write_bytes(b"this is no model" * 100)
        # Jobs that the queen took on, which must all end.
        self.jobs: list[str] = []
        self._holding = Holding()

    async def start(self) -> None:
        """Bring everything up."""
        self.restore_inventory()
        self.queen.playbook("hive", _PLAYBOOK)
        token = self.queen.secrets / "hives" / NODE
        token.parent.mkdir(parents=True, mode=0o700)
        token.touch(0o600)
        token.write_text(API_TOKEN)
        token.parent.parent.chmod(0o700)
        await asyncio.to_thread(self.queen.start)
        await self.hive.start()
        await self.want_all()

    async def close(self) -> None:
        """Take everything away."""
        self.queen.end()
        if self.hive.agent is not None:
            await self.hive.close()

    def remember(self) -> None:
        """All is fresh and well: nothing may hold much more than now."""
        self._holding.remember(self._pids())

    def logs(self) -> str:
        """The ends of both logs."""
        return f"{self.hive.log()[-LOG_END:]}\n{self.queen.log()[-LOG_END:]}"

    async def lives(self) -> dict[str, int]:
        """The process of each worker that should run."""
        workers = await self.workers()
        return {name: workers[name]["pid"] for name in WANTED if name in workers}

    def restore_inventory(self) -> None:
        """Write the inventory as it should be."""
        self.queen.hosts(_INVENTORY % self.hive.port)

    async def want_all(self) -> None:
        """Ask for every worker that should run, as a user or a playbook does again and again."""
        for name in WANTED:
            await self.hive.spawn(self.model, name=name)

    async def workers(self) -> dict[str, Any]:
        """What the hive tells of workers, by name."""
        listed = (await self.hive.ok("GET", "/api/v1/workers"))["workers"]
        return {worker["name"] or worker["id"]: worker for worker in listed}

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[Api]:
        """The queen's, with a client of its own: connections end with her."""
        async with self.queen.client() as api:
            yield api

    async def provision(self) -> None:
        """Have the queen take on a job."""
        async with self.api() as api:
            status, job = await api.call("POST", f"/api/v1/nodes/{NODE}/provision")
            assert status == 200, job
            self.jobs.append(job["job_id"])

    async def wrong(self) -> list[str]:
        """Everything that is not as it should be now."""
        return [
            *await self._wrong_workers(),
            *await self._wrong_queen(),
            *self._wrong_folders(),
            *self._holding.wrong(self._pids()),
        ]

    async def _wrong_workers(self) -> list[str]:
        workers = await self.workers()
        wrong: list[str] = []
        for name in WANTED:
            worker = workers.get(name)
            if worker is None:
                wrong.append(f"worker {name} is gone")
            elif worker["status"] == "failed" and worker["last_error"]["code"] == "crash_loop":
                # Five crashes in a row: as promised it waits for somebody to ask again.
                await self.hive.spawn(self.model, name=name)
                wrong.append(f"worker {name} was asked for again")
            elif worker["status"] != "idle":
                wrong.append(f"worker {name} is {worker['status']}: {worker['last_error']}")
            elif await complete(worker["url"], "A", 8) != expected_completion("A", 8):
                wrong.append(f"worker {name} answers wrongly")
        wrong += [f"worker {name} is not wanted: {workers[name]['status']}" for name in workers if name not in WANTED]
        found = {key: sorted(one.pid for one in many if not one.is_shim) for key, many in self.hive.processes().items()}
        told = {worker["id"]: [worker["pid"]] for worker in workers.values() if worker["pid"]}
        if found != told:
            wrong.append(f"the process table has {found}, and the hive tells of {told}")
        return wrong

    async def _wrong_queen(self) -> list[str]:
        async with self.api() as api:
            listed = (await api.call("GET", "/api/v1/nodes"))[1]
            wrong = [f"problem of the queen: {problem['code']}" for problem in listed["problems"]]
            if [(node["node_name"], node["status"]) for node in listed["nodes"]] != [(NODE, "active")]:
                wrong.append(f"nodes are {[(node['node_name'], node['status']) for node in listed['nodes']]}")
            known = {job["job_id"]: job["status"] for job in (await api.call("GET", "/api/v1/jobs"))[1]["jobs"]}
        # Nothing that happens here is the job's own fault.
        wrong += [
            f"job {job_id} is {known.get(job_id, 'lost')}"
            for job_id in self.jobs[-100:]
            if known.get(job_id) != "succeeded"
        ]
        wrong += [f"job {job_id} is {status}" for job_id, status in known.items() if status in {"queued", "running"}]
        return wrong

    def _wrong_folders(self) -> list[str]:
        home = self.hive.state_dir / "workers"
        folders = {folder.name for folder in home.iterdir()}
        more = folders - set(self.hive.processes())
        return [f"folders of workers that do not run are left: {sorted(more)}"] if more else []

    def _pids(self) -> dict[str, int]:
        assert self.hive.agent is not None
        return {"agent": self.hive.agent.pid, "queen": self.queen.pid}
