"""Two test hosts as hives with workers, and a queen on this machine who made them that."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import yaml

from llama_orch.demo_model import expected_completion, write_demo_model
from tests.hosts.host import Host
from tests.hosts.machines import Fleet, HostsError, missing
from tests.hosts.site import ROOT
from tests.support.hub.server import Hub
from tests.support.queen_process import Api, QueenProcess

from .holding import Holding
from .host_hive import STATE_DIR, UNIT, HostHive
from .promises import CUT_JOB_S
from .wall_clock import WallClock, set_shift, shift

# Debian 12, and 13 without Python, as `make fleet` has them.
GUESTS = {"debian12": ("bookworm", "full"), "debian13": ("trixie", "none")}
WANTED = ("one", "two")
# A worker that comes and goes.
EXTRA = "extra"
MODEL = "hf:demo/tiny"
LOG_END = 4000
# Longer than a node's job takes, which is what starts with a bare host.
JOB_MOST_S = 400.0
WORKER_MOST_S = 120.0
COMPLETION_MOST_S = 20.0
CLOCK_LIBRARY, CLOCK_SHIFT = "/usr/local/lib/libwall_clock.so", "/usr/local/lib/wall_clock_shift"
_CLOCK_UNIT = f"""\
[Service]
Environment=LD_PRELOAD={CLOCK_LIBRARY} FAULTS_CLOCK={CLOCK_SHIFT}
"""
ENDED = {"succeeded", "failed", "cancelled"}


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[HostWorld]:
    """The hosts' network, and a hub on it. Raises HostsError where this machine cannot have test hosts."""
    if why := missing():
        raise HostsError(why)
    subprocess.run(
        [sys.executable, "-m", "llama_orch.wheelhouse", "build", "--part=hive", "--python=3.11", "--python=3.13"],
        cwd=ROOT, check=True, timeout=1800,
    )  # fmt: skip
    with Fleet(folder / "hosts") as fleet, Hub(fleet.address) as hub:
        yield HostWorld(folder, fleet, hub)


class HostWorld:
    """What faults happen to."""

    def __init__(self, folder: Path, fleet: Fleet, hub: Hub) -> None:
        self._fleet = fleet
        self.hub = hub
        for name in ("queen", "clock"):
            (folder / name).mkdir()
        self._model_file = write_demo_model(folder / "tiny.gguf")
        self._models = 0
        hub.add_repo(MODEL.removeprefix("hf:"), {"tiny-Q4_K_M.gguf": self._model_file})
        self.clock = WallClock(folder / "clock")
        # Its own machine's numbers of seconds would only be waited for.
        self.queen = QueenProcess(
            folder / "queen", project=ROOT, environment=self.clock.environment,
            probe_interval_s=1, ssh_connect_timeout_s=5, failed_hold_s=3, change_own_machine=False,
        )  # fmt: skip
        self.hives: dict[str, HostHive] = {}
        # Jobs that the queen took on, which must all end.
        self.jobs: list[str] = []
        self._holding = Holding()

    # ---- life

    async def start(self) -> None:
        """Boot two bare hosts, have the queen make hives of them, and start their workers."""
        await asyncio.to_thread(self.queen.start)
        key = (self.queen.secrets / "ssh" / "id_ed25519.pub").read_text().strip()
        self._write_variables()
        hosts = await asyncio.gather(*(asyncio.to_thread(self._boot, name, key) for name in GUESTS))
        for host in hosts:
            self.hives[host.name] = HostHive(host, self.queen.secrets / "hives" / host.name)
        await asyncio.gather(*(self._register(hive) for hive in self.hives.values()))
        for hive in self.hives.values():
            await self._give_clock(hive)
            for name in WANTED:
                await self.spawn(hive, name)

    async def close(self) -> None:
        """Take everything away; the hosts go with their network."""
        self.queen.end()

    def remember(self) -> None:
        """All is fresh and well: nothing may hold much more than now."""
        self._holding.remember(self._pids())

    def logs(self) -> str:
        """The ends of the logs of the queen and of the agents."""
        logs = {"queen": self.queen.log(), **{name: hive.log() for name, hive in self.hives.items()}}
        return "\n".join(f"== {name}\n{log[-LOG_END:]}" for name, log in logs.items())

    def _write_variables(self) -> None:
        folder = self.queen.inventory / "group_vars"
        folder.mkdir(exist_ok=True)
        variables = {"hive_hub_endpoint": self.hub.url, "hive_reserve_ram_bytes": 2**28}
        (folder / "hives.yml").write_text(yaml.safe_dump(variables))

    def _boot(self, name: str, key: str) -> Host:
        suite, python = GUESTS[name]
        return self._fleet.boot(name, suite=suite, python=python, authorized_keys=[key], small_disk=STATE_DIR)

    async def _register(self, hive: HostHive) -> None:
        body = {"node_name": hive.name, "ssh_host": hive.host.address, "ssh_port": 22, "ssh_user": "llama-orch"}
        async with self.api() as api:
            status, node = await api.call("POST", "/api/v1/nodes", body)
            assert status == 200, node
            self.jobs.append(node["job_id"])
        await self.job_succeeds(node["job_id"])

    async def _give_clock(self, hive: HostHive) -> None:
        """Let the agent's wall clock jump, at its next start."""
        files = {CLOCK_LIBRARY: self.clock.library.read_bytes(), CLOCK_SHIFT: shift(0)}
        for path, content in files.items():
            (hive.host.root / path.lstrip("/")).write_bytes(content)
        folder = hive.host.root / f"etc/systemd/system/{UNIT}.service.d"
        folder.mkdir()
        (folder / "clock.conf").write_text(_CLOCK_UNIT)
        await hive.do(hive.host.run, "systemctl daemon-reload", check=True)
        await hive.systemctl("restart")
        await self.until_answers(hive)

    # ---- what is done to it

    @contextlib.asynccontextmanager
    async def api(self) -> AsyncIterator[Api]:
        """The queen's, with a client of its own: connections end with her."""
        async with self.queen.client() as api:
            yield api

    async def provision(self, hive: HostHive) -> str:
        """Have the queen take on a job for a host; the job's id."""
        async with self.api() as api:
            status, job = await api.call("POST", f"/api/v1/nodes/{hive.name}/provision")
        assert status == 200, job
        self.jobs.append(job["job_id"])
        return job["job_id"]

    async def job_ended(self, job_id: str, most_s: float = CUT_JOB_S) -> dict[str, Any]:
        """A job, once it has ended, also by a queen who was away for a while."""
        deadline = time.monotonic() + most_s
        while True:
            job: dict[str, Any] = {"status": "unknown"}
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self.api() as api:
                    job = await api.job(job_id)
            if job["status"] in ENDED:
                return job
            assert time.monotonic() < deadline, f"job {job_id} is {job['status']} after {most_s:.0f} s"
            await asyncio.sleep(0.3)

    async def job_succeeds(self, job_id: str) -> None:
        """Wait for a job's good end."""
        job = await self.job_ended(job_id, JOB_MOST_S)
        assert job["status"] == "succeeded", job["error"]

    async def provision_until_it_succeeds(self, hive: HostHive) -> None:
        """Have the host provisioned again, as a user does after a job that was cut."""
        await self.job_succeeds(await self.provision(hive))

    def some_hive(self, random: Random) -> HostHive:
        """One of the hosts."""
        return self.hives[random.choice(sorted(self.hives))]

    async def some_worker(self, hive: HostHive, random: Random) -> dict[str, Any]:
        """A worker that should run, as the hive tells of it."""
        return (await hive.workers())[random.choice(WANTED)]

    def new_model(self) -> str:
        """A model that no host has yet."""
        self._models += 1
        name = f"demo/new-{self._models}"
        self.hub.add_repo(name, {f"new-{self._models}-Q4_K_M.gguf": self._model_file})
        return f"hf:{name}"

    def set_clock(self, hive: HostHive, seconds: int) -> None:
        """Shift the wall clock of a host's agent."""
        set_shift(hive.host.root / CLOCK_SHIFT.lstrip("/"), seconds)

    async def spawn(self, hive: HostHive, name: str, model_ref: str = MODEL) -> Any:
        """Ask for a worker, and wait until it serves."""
        status, worker = await hive.call("POST", "/api/v1/workers", json=spawn_body(name, model_ref))
        assert status == 200, worker
        deadline = time.monotonic() + WORKER_MOST_S
        while worker["status"] != "idle":
            assert time.monotonic() < deadline and worker["status"] != "failed", worker
            await asyncio.sleep(0.2)
            worker = (await hive.workers())[name]
        return worker

    async def delete(self, hive: HostHive, name: str) -> None:
        """Have a worker gone, where there is one of that name."""
        worker = (await hive.workers()).get(name)
        if worker is not None:
            status, answer = await hive.call("DELETE", f"/api/v1/workers/{worker['id']}")
            assert status in {200, 404}, answer

    async def until_answers(self, hive: HostHive, most_s: float = 60.0) -> None:
        """Wait for the hive's answer."""
        deadline = time.monotonic() + most_s
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, AssertionError):
                await hive.workers()
                return
            assert time.monotonic() < deadline, f"the hive of {hive.name} does not answer within {most_s:.0f} s"
            await asyncio.sleep(0.2)

    async def node_becomes(self, hive: HostHive, status: str, most_s: float) -> None:
        """Wait until the queen shows a node with that status."""
        async with self.api() as api:
            await api.until(lambda node: node["status"] == status, f"/api/v1/nodes/{hive.name}", most_s)

    async def lives(self) -> dict[str, int]:
        """The process of each worker that should run."""
        told = {name: await hive.workers() for name, hive in self.hives.items()}
        return {
            f"{name}/{worker}": workers[worker]["pid"]
            for name, workers in told.items()
            for worker in WANTED
            if worker in workers
        }

    # ---- what is wrong

    async def wrong(self) -> list[str]:
        """Everything that is not as it should be now."""
        of_hosts = await asyncio.gather(*(self._wrong_host(hive) for hive in self.hives.values()))
        wrong = [one for of_one in of_hosts for one in of_one] + await self._wrong_queen()
        return wrong or self._holding.wrong(self._pids()) or await self._failed_units()

    async def _wrong_host(self, hive: HostHive) -> list[str]:
        try:
            workers = await hive.workers()
        except (aiohttp.ClientError, OSError, TimeoutError, AssertionError) as error:
            return [f"the hive of {hive.name} does not answer: {type(error).__name__} {error}"[:300]]
        wrong: list[str] = []
        for name in WANTED:
            worker = workers.get(name)
            if worker is None:
                wrong.append(f"worker {name} is gone")
            elif worker["status"] == "failed" and worker["last_error"]["code"] == "crash_loop":
                # Five crashes in a row: as promised it waits for somebody to ask again.
                await hive.call("POST", "/api/v1/workers", json=spawn_body(name))
                wrong.append(f"worker {name} was asked for again")
            elif worker["status"] != "idle":
                wrong.append(f"worker {name} is {worker['status']}: {worker['last_error']}")
            elif (said := await self._complete(worker)) != expected_completion("A", 8):
                wrong.append(f"worker {name} answers {said!r}")
        wrong += [f"worker {name} is not wanted: {workers[name]['status']}" for name in workers if name not in WANTED]
        wrong += await asyncio.to_thread(_wrong_processes, hive, workers)
        return [f"{hive.name}: {one}" for one in wrong]

    async def _complete(self, worker: dict[str, Any]) -> str:
        """A worker's answer, or why there is none."""
        token = (self.queen.secrets / "inference-token").read_text().strip()
        body = {"prompt": "A", "max_tokens": 8, "temperature": 0}
        try:
            async with (
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
                session.post(
                    f"{worker['url']}/v1/completions", json=body, timeout=aiohttp.ClientTimeout(total=COMPLETION_MOST_S)
                ) as answer,
            ):
                return (await answer.json())["choices"][0]["text"] if answer.status == 200 else await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return f"{type(error).__name__}: {error}"

    async def _wrong_queen(self) -> list[str]:
        async with self.api() as api:
            listed = (await api.call("GET", "/api/v1/nodes"))[1]
            known = {job["job_id"]: job["status"] for job in (await api.call("GET", "/api/v1/jobs"))[1]["jobs"]}
        wrong = [f"problem of the queen: {problem['code']}" for problem in listed["problems"]]
        nodes = {node["node_name"]: node for node in listed["nodes"]}
        if set(nodes) != set(self.hives):
            wrong.append(f"the queen's nodes are {sorted(nodes)}")
        for name, node in nodes.items():
            counts = node["hive"] and node["hive"]["workers"]
            if node["status"] != "active":
                wrong.append(f"node {name} is {node['status']}: {node['last_error']}")
            elif counts != {"total": len(WANTED), "idle": len(WANTED), "busy": 0}:
                wrong.append(f"the queen tells of workers {counts} on {name}")
        wrong += [f"job {job_id} is lost" for job_id in self.jobs[-50:] if job_id not in known]
        return wrong + [f"job {job_id} is {status}" for job_id, status in known.items() if status not in ENDED]

    async def _failed_units(self) -> list[str]:
        hosts = [hive.host for hive in self.hives.values()]
        failed = await asyncio.gather(
            *(asyncio.to_thread(host.run, "systemctl --failed --no-legend --plain") for host in hosts)
        )
        return [f"{host.name}: failed: {done.stdout}" for host, done in zip(hosts, failed, strict=True) if done.stdout]

    def _pids(self) -> dict[str, int]:
        agents = {f"agent on {name}": hive.running().agents for name, hive in self.hives.items()}
        return {"queen": self.queen.pid, **{name: found[0].pid for name, found in agents.items() if found}}


def spawn_body(name: str, model_ref: str = MODEL) -> dict[str, Any]:
    """The request for a worker."""
    return {"model_ref": model_ref, "backend": "cpu", "name": name, "threads": 1}


def _wrong_processes(hive: HostHive, workers: dict[str, Any]) -> list[str]:
    running = hive.running()
    wrong = list(running.strays)
    if len(running.agents) != 1:
        wrong.append(f"there are {len(running.agents)} agents")
    found = running.served_by()
    told = {worker["id"]: [worker["pid"]] for worker in workers.values() if worker["pid"]}
    if found != told:
        wrong.append(f"the process table has {found}, and the hive tells of {told}")
    folders = {folder.name for folder in (hive.state_dir / "workers").iterdir()}
    if more := folders - {worker["id"] for worker in workers.values()}:
        wrong.append(f"folders of workers that nobody knows are left: {sorted(more)}")
    return wrong
