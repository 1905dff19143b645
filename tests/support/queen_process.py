"""A real queen process on a loopback port, with a project folder of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from .ports import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0


class QueenProcess:
    """Started and killed by the test; its folders stay between starts."""

    def __init__(
        self,
        folder: Path,
        project: Path | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        **settings: object,
    ) -> None:
        self.folder = folder
        self._environment = environment or {}
        self.project = project or folder / "project"
        self.inventory = folder / "inventory"
        self.secrets = folder / "secrets"
        self.data = folder / "data"
        if project is None:
            (self.project / "playbooks").mkdir(parents=True)
            shutil.copy(REPOSITORY / "ansible.cfg", self.project)
        self.inventory.mkdir()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        values: dict[str, object] = {
            "port": self.port,
            "project_dir": str(self.project),
            "data_dir": str(self.data),
            "inventory_dir": str(self.inventory),
            "secrets_dir": str(self.secrets),
            "probe_interval_s": 0.3,
            "probe_timeout_s": 2,
            "ssh_connect_timeout_s": 3,
            "verify_timeout_s": 10,
            # Most tests do to this machine what a playbook of theirs says.
            "change_own_machine": True,
        } | settings
        self.config = folder / "queen.toml"
        self.config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it and wait until it answers; answers the seconds that took."""
        began = time.monotonic()
        with (self.folder / "queen.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llama_orch.queen", "--config", str(self.config)],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY / "agent"), **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while time.monotonic() - began < START_TIMEOUT_S:
            if self._process.poll() is not None:
                raise AssertionError(f"the queen ended with {self._process.returncode}: {self.log()}")
            with socket.socket() as probe:
                probe.settimeout(1)
                # The socket listens before the application serves; an answer tells that it does.
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    probe.settimeout(START_TIMEOUT_S)
                    probe.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    if probe.recv(12) == b"HTTP/1.1 200":
                        return time.monotonic() - began
            time.sleep(0.02)
        raise AssertionError(f"the queen does not answer: {self.log()}")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 15.0) -> float:
        """Send a signal and wait for the end; answers the seconds that took."""
        assert self._process is not None
        began = time.monotonic()
        self._process.send_signal(number)
        self._process.wait(timeout)
        self._process = None
        return time.monotonic() - began

    def end(self) -> None:
        """Whatever happened, nothing stays: asked politely, it ends the runs of its jobs too."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)

    def log(self) -> str:
        """What it wrote."""
        return (self.folder / "queen.log").read_text(errors="replace")

    def known_hosts(self) -> str:
        """Host keys as it recorded them."""
        return (self.data / "known_hosts").read_text()

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def token(self) -> str:
        """Its api-token."""
        return (self.secrets / "api-token").read_text().strip()

    @property
    def registered(self) -> Path:
        """The inventory file that is the queen's."""
        return self.inventory / "00-registered.yml"

    def playbook(self, name: str, tasks: str) -> None:
        """Write a playbook of these tasks, for hosts that are this machine or reached by ssh."""
        lines = "\n".join("    " + line for line in tasks.strip().splitlines())
        text = f"---\n- name: Play {name}\n  hosts: hives\n  gather_facts: false\n  tasks:\n{lines}\n"
        (self.project / "playbooks" / f"{name}.yml").write_text(text)

    def hosts(self, text: str) -> None:
        """Write hosts.yml as an editor does: a new file renamed over the old one."""
        new = self.inventory / ".hosts.yml.new"
        new.write_text(text)
        new.rename(self.inventory / "hosts.yml")

    def client(self) -> Api:
        """Speaks to it with its token."""
        return Api(self.url, self.token)


class Api:
    """Plain HTTP with the token; answers status and JSON."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Api:
        self._session = aiohttp.ClientSession(self.url, headers=self.headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One request; `body` is sent as JSON, bytes as they are."""
        assert self._session is not None
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self._session.request(method, path, data=data) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    async def node(self, name: str) -> dict[str, Any]:
        """One node."""
        status, node = await self.call("GET", f"/api/v1/nodes/{name}")
        assert status == 200, node
        return node

    async def job(self, job_id: str) -> dict[str, Any]:
        """One job."""
        status, job = await self.call("GET", f"/api/v1/jobs/{job_id}")
        assert status == 200, job
        return job

    async def events(self, job_id: str) -> AsyncIterator[dict[str, Any]]:
        """The job's events as they come."""
        assert self._session is not None
        async with self._session.get(f"/api/v1/jobs/{job_id}/events") as answer:
            assert answer.status == 200
            async for line in answer.content:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    async def ended(self, job_id: str, timeout: float = 120.0) -> dict[str, Any]:
        """Wait until the job has ended."""
        return await self.until(
            lambda job: job["status"] in {"succeeded", "failed", "cancelled"}, f"/api/v1/jobs/{job_id}", timeout
        )

    async def until(self, condition: Callable[[Any], bool], path: str, timeout: float = 60.0) -> Any:
        """Ask until the answer fulfils `condition`."""
        deadline = time.monotonic() + timeout
        while True:
            status, answer = await self.call("GET", path)
            if status == 200 and condition(answer):
                return answer
            assert time.monotonic() < deadline, f"{path} stays {answer}"
            await asyncio.sleep(0.05)


def processes_with(text: str) -> list[int]:
    """Processes of this machine whose command line holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in command:
                found.append(int(entry.name))
    return found
