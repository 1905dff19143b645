"""One Ansible run: a short-lived child process from a clean environment, in a fresh folder, fenced when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_orch.base import child_output
from llama_orch.base.child import Child

from . import fence
from .failures import NO_RESULT, TIMEOUT, TaskFailure
from .lines import PlayLine, ResultLine, Stats, TaskLine, parse
from .ssh import SshSetup

log = logging.getLogger(__name__)

_LINE_LIMIT = 1024 * 1024
_TERM_TIMEOUT_S = 3.0
_ENDING_S = 2.0
_KILLED_S = 10.0
_MOST_OUTPUT = 4000
# The one that ended the run is the last; a loop whose failures are ignored may have any number.
_MOST_FAILURES = 100
_CONTROL_NOTE = "control_folder"
_RUN_CHILD = Path(__file__).with_name("run_child.py")
OnLine = Callable[[PlayLine | TaskLine], None]


@dataclass(frozen=True)
class RunSpec:
    """What to run. Extra variables are typed and hold no secret; the sudo password travels in a file of its own."""

    run_id: str
    playbook: str
    limit: str
    extra_vars: dict[str, str | int | bool]
    become_password: str | None = None


@dataclass
class RunResult:
    """How a run ended, judged by the stats of each host and not by a return code."""

    status: str = NO_RESULT
    stats: Stats | None = None
    failures: list[TaskFailure] = field(default_factory=list)
    tasks: int = 0
    output: str = ""
    interrupted: bool = False

    def succeeded(self, host: str) -> bool:
        """Whether the playbook went through on `host`."""
        if self.stats is None or self.interrupted or self.status != "successful":
            return False
        bad = self.stats.failures.get(host, 0) + self.stats.dark.get(host, 0)
        return bad == 0 and host in self.stats.processed

    @property
    def lost(self) -> bool:
        """Whether the process ended, by itself or by somebody else, before it could say how the run did."""
        return self.status == NO_RESULT and not self.interrupted


class Runs:
    """Starts runs and clears away what they leave."""

    def __init__(
        self,
        *,
        folder: Path,
        project: Path,
        inventory: Path,
        environment: dict[str, str],
        ssh: SshSetup,
        timeout_s: float,
    ) -> None:
        self._folder = folder
        self._project = project
        self._inventory = inventory
        self._environment = environment
        self._ssh = ssh
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(8, "fence")

    async def clear(self, job_id: str | None = None) -> None:
        """End and delete what runs of `job_id` left here, or of every job. Raises fence.FenceFailed."""
        if self._folder.is_dir():
            for path in list(self._folder.iterdir()):
                if job_id is None or path.name.rpartition(".")[0] == job_id:
                    await self._clear(path)

    def prepare(self, run_id: str) -> dict[str, str]:
        """Make the run's folder, by which it is fenced later, and answer the environment that marks its processes."""
        path = self._folder / run_id
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._environment | {fence.MARKER: run_id}

    def next_run_id(self, job_id: str) -> str:
        """A name that no earlier run of this job has."""
        return f"{job_id}.{os.urandom(4).hex()}"

    async def run(self, spec: RunSpec, on_line: OnLine, interrupt: asyncio.Event) -> RunResult:
        """Run a playbook to its end, or until `interrupt` or the time-out; nothing of it is left here then.

        Raises OSError where it cannot be started.
        """
        environment = self.prepare(spec.run_id)
        folder = self._folder / spec.run_id
        control = _control_folder(folder)
        try:
            return await self._execute(spec, folder, environment | self._ansible(folder, control), on_line, interrupt)
        finally:
            await asyncio.shield(self._clear(folder))

    async def _execute(
        self,
        spec: RunSpec,
        folder: Path,
        environment: dict[str, str],
        on_line: OnLine,
        interrupt: asyncio.Event,
    ) -> RunResult:
        result, said = RunResult(), child_output.Tail(_MOST_OUTPUT)
        command = [sys.executable, "-I", str(_RUN_CHILD)]
        child = await Child.start(command, environment=environment, stderr=subprocess.PIPE, cwd=self._project)
        # Its input stays open: it ends itself where that is closed, as when the queen is killed.
        child.say(json.dumps(self._child_spec(spec, folder)).encode() + b"\n")
        reading = asyncio.create_task(self._read(child.stdout, result, on_line))
        complaints = asyncio.create_task(said.read(child.stderr))
        interrupted = asyncio.create_task(interrupt.wait())
        try:
            # By the queen's own clock: Ansible's runner counts by that of the wall, which may jump.
            await asyncio.wait(
                {reading, interrupted, child.ended}, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not reading.done():
                result.interrupted = interrupted.done()
                timed_out = not interrupted.done() and child.status is None
                child.send(signal.SIGTERM)
                # One that has ended has written all, but it may not be read yet.
                await asyncio.wait({reading}, timeout=_TERM_TIMEOUT_S)
                if timed_out:
                    result.status = TIMEOUT
        finally:
            interrupted.cancel()
            await self._end(child, spec.run_id)
            # The pipes are closed now, so that both have ended but for what is still in a buffer.
            ended, stuck = await asyncio.wait({reading, complaints}, timeout=5)
            for task in stuck:
                task.cancel()
            await child.end()
        result.output += said.text
        if reading in ended and (error := reading.exception()) is not None:
            log.error("the events of run %s could not be read", spec.run_id, exc_info=error)
        if result.lost:
            log.error("run %s ended without a result, with %s: %s", spec.run_id, child.status, said.text)
        return result

    async def _end(self, child: Child, run_id: str) -> None:
        # The result line came or the pipe closed: the child needs no more than a moment.
        await child.ended_within(_ENDING_S)
        await self._in_thread(fence.fence, run_id)
        child.send(signal.SIGKILL)
        await child.ended_within(_KILLED_S)

    async def _read(self, pipe: asyncio.StreamReader, result: RunResult, on_line: OnLine) -> None:
        async for text in child_output.lines(pipe, _LINE_LIMIT):
            line = parse(text)
            if line is None:
                log.warning("a line of a run is none of ours, and is left out: %r", text[:200])
                continue
            if isinstance(line, ResultLine):
                result.status, result.stats, result.output = line.status, line.stats, line.output
                return
            if isinstance(line, TaskLine):
                self._count(line, result)
            on_line(line)

    @staticmethod
    def _count(line: TaskLine, result: RunResult) -> None:
        if line.outcome == "started":
            result.tasks += 1
        if line.outcome in {"failed", "unreachable"} and not line.ignored:
            unreachable = line.outcome == "unreachable"
            result.failures.append(TaskFailure(line.host, line.task, line.message or "", unreachable))
            del result.failures[:-_MOST_FAILURES]

    def _child_spec(self, spec: RunSpec, folder: Path) -> dict[str, Any]:
        variables = folder / "variables.json"
        variables.write_text(json.dumps(spec.extra_vars), encoding="utf-8")
        cmdline = f"--extra-vars @{shlex.quote(str(variables))}"
        if spec.become_password is not None:
            secret = folder / "become-password"
            descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(spec.become_password + "\n")
            cmdline += f" --become-password-file {shlex.quote(str(secret))}"
        return {
            "folder": str(folder),
            "project_dir": str(self._project),
            "playbook": f"playbooks/{spec.playbook}.yml",
            "inventory": str(self._inventory),
            "limit": spec.limit,
            "cmdline": cmdline,
        }

    def _ansible(self, folder: Path, control: Path) -> dict[str, str]:
        ssh_args = ["-o", "ControlMaster=auto", "-o", "ControlPersist=30m"]
        ssh_args += [_quoted(argument) for argument in self._ssh.options()]
        return {
            "ANSIBLE_CONFIG": str(self._project / "ansible.cfg"),
            "ANSIBLE_HOST_KEY_CHECKING": "True",
            "ANSIBLE_SSH_ARGS": " ".join(ssh_args),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(control),
            "ANSIBLE_TIMEOUT": str(self._ssh.connect_timeout_s),
            "ANSIBLE_PRIVATE_KEY_FILE": str(self._ssh.key_file),
            "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
            "ANSIBLE_RETRY_FILES_ENABLED": "False",
            "ANSIBLE_NOCOLOR": "1",
        }

    async def _clear(self, folder: Path) -> None:
        await self._in_thread(fence.fence, folder.name)
        await self._in_thread(_delete, folder)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _control_folder(folder: Path) -> Path:
    """Where ssh keeps its sockets. It wants their paths below 108 bytes, and the data folder may be deep."""
    control = Path(tempfile.mkdtemp(prefix="llo-", dir="/tmp"))
    try:
        (folder / _CONTROL_NOTE).write_text(str(control), encoding="utf-8")
    except OSError:
        control.rmdir()
        raise
    return control


def _delete(folder: Path) -> None:
    with contextlib.suppress(OSError):
        control = Path((folder / _CONTROL_NOTE).read_text(encoding="utf-8"))
        if control.name.startswith("llo-"):
            fence.close_connections(control)
            shutil.rmtree(control, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _quoted(argument: str) -> str:
    return f"'{argument}'" if " " in argument or '"' in argument else argument
