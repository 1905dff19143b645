"""The first contact with a host: one plain ssh as the login user, then whether sudo works. Nothing is changed."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_orch.contract.common import Problem

from . import failures
from .inventory import Host

_SSH_FAILED = 255
_NO_SUDO = 90
_WANTS_PASSWORD = 91
_SUDO_AS_IT_IS = (
    'if [ "$(id -u)" = 0 ]; then exit 0; fi; '
    f"command -v sudo >/dev/null 2>&1 || exit {_NO_SUDO}; "
    f"LC_ALL=C sudo -n true && exit 0; exit {_WANTS_PASSWORD}"
)
_SUDO_BY_STDIN = "LC_ALL=C sudo -S -k -p '' true"
_ANSWER_TIMEOUT_S = 30


@dataclass(frozen=True)
class SshSetup:
    """How the queen logs in: its key, the project's known_hosts, how long a host has to accept."""

    key_file: Path
    known_hosts: Path
    connect_timeout_s: int

    def options(self, *, accept_new: bool) -> list[str]:
        """ssh options that hold for every connection of the queen."""
        settings = [
            f'UserKnownHostsFile="{self.known_hosts}"',
            "GlobalKnownHostsFile=/dev/null",
            "HashKnownHosts=no",
            "UpdateHostKeys=no",
            "StrictHostKeyChecking=" + ("accept-new" if accept_new else "yes"),
            "IdentitiesOnly=yes",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
        ]
        return [argument for setting in settings for argument in ("-o", setting)]


async def check(host: Host, setup: SshSetup, environment: dict[str, str], password: str | None) -> Problem | None:
    """Log in, record or compare the host key, try sudo. None where all is well."""
    if host.connection != "ssh" or host.templated:
        return None
    code, text = await _ssh(host, setup, environment, _SUDO_AS_IT_IS, None)
    problem = _explain(code, text, host)
    if code != _WANTS_PASSWORD or host.has_become_password:
        return None if code == _WANTS_PASSWORD else problem
    if password is None or "not in the sudoers" in text or "not allowed" in text:
        return problem
    code, text = await _ssh(host, setup, environment, _SUDO_BY_STDIN, password)
    if code not in {0, _SSH_FAILED} and "not in the sudoers" not in text:
        text = f"Incorrect sudo password: {text}"
    return _explain(code, text, host)


async def port_answers(host: Host, timeout_s: float) -> bool:
    """Whether something accepts connections at the host's ssh port."""
    if host.connection != "ssh" or host.templated or any("Proxy" in argument for argument in host.ssh_args):
        return True
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.ssh_host, host.ssh_port), timeout_s)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _explain(code: int, text: str, host: Host) -> Problem | None:
    if code == 0:
        return None
    task = "log in by ssh" if code == _SSH_FAILED else "use sudo"
    if code == _NO_SUDO:
        text = "sudo is not installed"
    return failures.classify(text, task=task, host=host.name, unreachable=code == _SSH_FAILED)


async def _ssh(
    host: Host, setup: SshSetup, environment: dict[str, str], command: str, password: str | None
) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *_arguments(host, setup),
        f"sh -c {shlex.quote(command)}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        typed = None if password is None else password.encode() + b"\n"
        _, err = await asyncio.wait_for(process.communicate(typed), setup.connect_timeout_s + _ANSWER_TIMEOUT_S)
    except TimeoutError:
        return _SSH_FAILED, "Connection timed out while the host was logging us in"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None  # noqa: S101  communicate() has ended
    return process.returncode, err.decode(errors="replace")


def _arguments(host: Host, setup: SshSetup) -> Sequence[str]:
    return [
        "ssh",
        *setup.options(accept_new=True),
        *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={setup.connect_timeout_s}"),
        *("-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "LogLevel=ERROR"),
        *("-i", host.key_file or str(setup.key_file)),
        *host.ssh_args,
        *("-p", str(host.ssh_port), "-l", host.ssh_user, "--", host.ssh_host),
    ]
