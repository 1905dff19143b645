"""Queen and hive as child processes of this one: started, watched, and stopped so that nothing stays behind.

All of it is in one folder, the home. What runs for a home carries its path in the environment, also what queen and hive
start, by which a later start finds what an earlier one, killed at any line, left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_orch.base import locks
from llama_orch.base.processes import boot_id, start_time
from llama_orch.base.tokens import make_token_file
from llama_orch.client import Hive, Queen
from llama_orch.contract.errors import ApiError
from llama_orch.contract.home import HOME_VARIABLE

from . import home_files, processes
from .connection import LocalUp, Unusable, read_local_up
from .output import line
from .running import Failed
from .watching import tell_problems

ADDRESS = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 20.0
HURRIED_SECONDS = 1.0
# A queen that has a playbook running ends that first.
SERVICES_SECONDS = 10.0
OTHERS_SECONDS = 5.0
WORKER_STOP_SECONDS = 60.0
TAIL_LINES = 20
# These run on without their agent, and the next agent adopts them.
_OUTLIVE = frozenset({"llama_orch.hive.shim", "llama_orch.worker"})
# These end what they started, each in its own way, where they are asked first.
_SERVICES = frozenset({"llama_orch.queen", "llama_orch.hive"})


@dataclass
class Child:
    """One service of this home."""

    name: str
    url: str
    log: Path
    process: asyncio.subprocess.Process

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(f"  | {text}" for text in lines[-TAIL_LINES:])

    def died(self) -> Failed:
        """The error that says how it ended."""
        code = self.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        return Failed(f"the {self.name} {how}; the end of {self.log}:\n{self.tail()}")

    async def wait_ready(self, probe: Callable[[], Awaitable[object]]) -> None:
        """Return when `probe` succeeds. Raises Failed where the process ends, or START_SECONDS pass, before."""
        until = time.monotonic() + START_SECONDS
        while True:
            if self.process.returncode is not None:
                raise self.died()
            try:
                await probe()
            except ApiError as error:
                if time.monotonic() > until:
                    raise Failed(
                        f"the {self.name} does not answer: {error.message}; the end of {self.log}:\n{self.tail()}"
                    ) from None
            else:
                return
            await asyncio.sleep(0.1)

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """TERM, and after `grace_s` seconds, or one in a hurry, KILL."""
        if self.process.returncode is None:
            self.process.terminate()
            ended = asyncio.ensure_future(self.process.wait())
            await _first_of(ended, hurry, grace_s)
            if not ended.done():
                await asyncio.wait({ended}, timeout=HURRIED_SECONDS)
            ended.cancel()
        if self.process.returncode is None:
            line(f"The {self.name} did not end in time and is killed", style="yellow")
            self.process.kill()
            await self.process.wait()


@dataclass
class Home:
    """A folder with the state of one `up`, and what runs for it."""

    folder: Path
    queen_port: int = 8080
    hive_port: int = 8081
    children: list[Child] = field(default_factory=list)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def marker(self) -> str:
        """What processes of this home have in their environment."""
        return f"{HOME_VARIABLE}={self.folder}"

    @property
    def secrets(self) -> Path:
        """The folder of tokens."""
        return self.folder / "secrets"

    @property
    def api_token_file(self) -> Path:
        """The token of queen and hive."""
        return self.secrets / "api-token"

    @property
    def inference_token_file(self) -> Path:
        """The token of workers."""
        return self.secrets / "inference-token"

    def queen(self) -> Queen:
        """A client of this home's queen."""
        return Queen(f"http://{ADDRESS}:{self.queen_port}", self.api_token_file.read_text().strip())

    def hive(self) -> Hive:
        """A client of this home's hive."""
        return Hive(f"http://{ADDRESS}:{self.hive_port}", self.api_token_file.read_text().strip())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home; raises Unusable where another process does."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            if not locks.take(lock):
                other = read_local_up(self.folder)
                where = f" (process {other.pid}, queen {other.queen_url})" if other else ""
                raise Unusable(
                    f"llama-orch already runs in {self.folder}{where}: use it, "
                    "stop it with Ctrl-C, or give another --dir"
                )
            yield

    def end_leftovers(self, *, workers_too: bool = False) -> list[str]:
        """End what an earlier run of this home left; returns a line for each. Workers are left for adoption.

        Queen and hive come first; of what they started, what is still there then.
        """
        ended: dict[int, list[str]] = {}
        for services_only in (True, False):
            found = {
                pid: argv
                for pid, argv in processes.marked(self.marker)
                if (_SERVICES & set(argv) if services_only else workers_too or not _OUTLIVE & set(argv))
            }
            processes.end(list(found), grace_s=SERVICES_SECONDS if services_only else OTHERS_SECONDS)
            ended |= found
        return [f"process {pid} ({' '.join(argv)[:80].strip()})" for pid, argv in ended.items()]

    def _has_workers(self) -> bool:
        return any(_OUTLIVE & set(argv) for _, argv in processes.marked(self.marker))

    def prepare(self) -> None:
        """Write secrets and settings, where they are not there or not right."""
        for file in (self.api_token_file, self.inference_token_file):
            make_token_file(file)
            # Where they are older than this, closed to others in any case.
            file.chmod(0o600)
        self.secrets.chmod(0o700)
        home_files.write_settings(self.folder, ADDRESS, self.queen_port, self.hive_port)

    def prepare_this_machine(self) -> None:
        """Make this machine node `local` of the queen."""
        home_files.link_hive_token(self.secrets, "local")
        home_files.write_inventory(self.folder / "inventory", ADDRESS, self.hive_port)

    async def start(self, *names: str) -> list[Child]:
        """Start `hive`, `queen` or both, and wait until each answers as ours. Raises Unusable or Failed."""
        ports = {"hive": self.hive_port, "queen": self.queen_port}
        for name in names:
            check_port(ports[name], f"--{name}-port", f"LLAMA_ORCH_{name.upper()}_PORT")
        children = [await self._start(name, ports[name]) for name in names]
        async with self.hive() as hive, self.queen() as queen:
            for child in children:
                await child.wait_ready(hive.info if child.name == "hive" else queen.ssh_key)
            if any(child.name == "queen" for child in children):
                tell_problems((await queen.fleet()).problems)
        return children

    async def _start(self, name: str, port: int) -> Child:
        log = self.folder / "log" / f"{name}.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        arguments = ("-m", f"llama_orch.{name}", "--config", str(self.folder / f"{name}.toml"))
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(),
                # Ctrl-C in the terminal is for us alone: we stop workers, hive and queen in this order.
                start_new_session=True,
            )
        child = Child(name, f"http://{ADDRESS}:{port}", log, process)
        self.children.append(child)
        return child

    def _environment(self) -> dict[str, str]:
        owned = {f"LLAMA_ORCH_{part}_{key.upper()}" for part in ("QUEEN", "HIVE") for key in home_files.OWNED_SETTINGS}
        kept = {name: value for name, value in os.environ.items() if name not in owned}
        return {**kept, HOME_VARIABLE: str(self.folder), "PYTHONUNBUFFERED": "1"}

    def announce(self) -> None:
        """Let other commands find this home's services while this process lives."""
        pid = os.getpid()
        told = LocalUp(
            pid=pid,
            start_time=start_time(pid) or 0,
            boot_id=boot_id(),
            queen_url=f"http://{ADDRESS}:{self.queen_port}",
            hive_url=next((child.url for child in self.children if child.name == "hive"), None),
            api_token_file=self.api_token_file,
            inference_token_file=self.inference_token_file,
            secrets_dir=self.secrets,
        )
        home_files.write(self.folder / "connection.json", told.model_dump_json(indent=2) + "\n")

    async def watch(self) -> None:
        """Return never; raises Failed when a child ends by itself."""
        waits = {asyncio.ensure_future(child.process.wait()): child for child in self.children}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            raise waits[done.pop()].died()
        finally:
            for wait in waits:
                wait.cancel()

    async def stop(self) -> None:
        """Stop workers over REST, then hive and queen; end whatever is left. `hurry` cuts every wait short."""
        (self.folder / "connection.json").unlink(missing_ok=True)
        hive = next((child for child in self.children if child.name == "hive"), None)
        workers_stopped = hive is not None and hive.process.returncode is None and await self._stop_workers()
        for child in sorted(self.children, key=lambda child: child.name):
            await child.stop(STOP_SECONDS, self.hurry)
        # Without a hive there are those that an earlier run left, where this one did not come to start one.
        if not workers_stopped and (hive is not None or await asyncio.to_thread(self._has_workers)):
            await self._stop_workers_without_hive()
        for left in await asyncio.to_thread(self.end_leftovers, workers_too=True):
            line(f"Ended a {left} that was left", style="yellow")

    async def _stop_workers(self) -> bool:
        async def stop_all() -> None:
            async with self.hive() as client:
                workers = await client.list_workers()
                await asyncio.gather(*(client.stop_worker(worker.id) for worker in workers))

        stopping = asyncio.ensure_future(stop_all())
        await _first_of(stopping, self.hurry, WORKER_STOP_SECONDS)
        if not stopping.done():
            stopping.cancel()
            return False
        if isinstance(error := stopping.exception(), ApiError):
            line(f"The hive could not stop its workers: {error.message}", style="yellow")
        return error is None

    async def _stop_workers_without_hive(self) -> None:
        arguments = ("-m", "llama_orch.hive.stop_workers", "--state-dir", str(self.folder / "hive" / "state"))
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=self._environment())
        try:
            await asyncio.wait_for(process.wait(), WORKER_STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _first_of(work: asyncio.Future[Any], hurry: asyncio.Event, timeout: float) -> None:
    """Wait until `work` is done, the user is in a hurry, or `timeout` seconds have passed."""
    hurried = asyncio.ensure_future(hurry.wait())
    await asyncio.wait({work, hurried}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()


def check_port(port: int, option: str, variable: str) -> None:
    """Raises Unusable where nobody could listen on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
            # Two sockets may bind with SO_REUSEADDR as long as none listens.
            probe.listen(1)
        except OSError as error:
            reason = "is in use by another program" if error.errno == errno.EADDRINUSE else f"fails: {error.strerror}"
            raise Unusable(f"port {port} {reason}: choose another with {option} (or {variable}=PORT)") from None
