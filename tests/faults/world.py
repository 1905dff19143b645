"""A real hive with workers and a real queen, what should run there, and what is wrong about it at a moment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from llama_orch.demo_model import expected_completion, write_demo_model
from tests.hives import API_TOKEN, HiveProcess, complete
from tests.queen_process import Api, QueenProcess

NODE = "tested"
WANTED = ("one", "two", "three")
# What may be held more than when all was fresh, in files and in bytes.
MORE_FILES, MORE_BYTES = 40, 150 * 2**20
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


class World:
    """What faults happen to."""

    def __init__(self, folder: Path) -> None:
        for name in ("hive", "queen"):
            (folder / name).mkdir()
        self.hive = HiveProcess(folder / "hive")
        self.queen = QueenProcess(folder / "queen")
        self.model = f"file:{write_demo_model(folder / 'demo.gguf')}"
        self.broken_model = folder / "broken.gguf"
        self.broken_model.write_bytes(b"this is no model" * 100)
        # Jobs that the queen took on, which must all end.
        self.jobs: list[str] = []
        self._held: dict[str, tuple[int, int]] = {}

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
        await self.settled(60)
        self._held = self._holding()

    async def close(self) -> None:
        """Take everything away."""
        self.queen.end()
        await self.hive.close()

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

    async def settled(self, within_s: float) -> tuple[float, list[str]]:
        """Wait until nothing is wrong: the seconds that took, and what is still wrong after `within_s`."""
        began = time.monotonic()
        while True:
            wrong = await self.wrong()
            took = time.monotonic() - began
            if not wrong or took > within_s:
                return took, wrong
            await asyncio.sleep(0.1)

    async def wrong(self) -> list[str]:
        """Everything that is not as it should be now."""
        try:
            return [*await self._wrong_workers(), *await self._wrong_queen(), *self._wrong_processes()]
        except (aiohttp.ClientError, OSError, TimeoutError, AssertionError) as error:
            return [f"{type(error).__name__}: {error}"[:300]]

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
        wrong += [f"job {job_id} is lost" for job_id in self.jobs[-100:] if job_id not in known]
        wrong += [f"job {job_id} is {status}" for job_id, status in known.items() if status in {"queued", "running"}]
        return wrong

    def _wrong_processes(self) -> list[str]:
        wrong: list[str] = []
        for name, (files, size) in self._holding().items():
            before_files, before_size = self._held.get(name, (files, size))
            if files > before_files + MORE_FILES:
                wrong.append(f"the {name} has {files} files open, {before_files} at first")
            if size > before_size + MORE_BYTES:
                wrong.append(f"the {name} holds {size >> 20} MiB, {before_size >> 20} at first")
        wrong += [f"process {pid} of {name} is a zombie" for name, pid in self._zombies()]
        return wrong

    def _pids(self) -> dict[str, int]:
        agent, queen = self.hive.agent, self.queen.pid
        assert agent is not None
        return {"agent": agent.pid, "queen": queen}

    def _holding(self) -> dict[str, tuple[int, int]]:
        page = os.sysconf("SC_PAGE_SIZE")
        return {
            name: (
                len(list(Path(f"/proc/{pid}/fd").iterdir())),
                int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page,
            )
            for name, pid in self._pids().items()
        }

    def _zombies(self) -> list[tuple[str, int]]:
        parents = {pid: name for name, pid in self._pids().items()}
        found: list[tuple[str, int]] = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z" and int(fields[1]) in parents:
                    found.append((parents[int(fields[1])], int(entry.name)))
        return found
