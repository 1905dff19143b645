"""One plain ssh to a host, as the queen logs in: no shared connection, no prompt, within a time-out."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_orch.base.child import Child
from llama_orch.base.child_output import Tail, hear_out

from ..inventory.view import Host

FAILED = 255
_ANSWER_TIMEOUT_S = 30
# A host may send a banner without end.
_MOST_ERR = 64 * 1024


@dataclass(frozen=True)
class SshSetup:
    """How the queen logs in: its key, the project's known_hosts, how long a host has to accept.

    `trust_first_key`: whether a password may go to a host of which no more is known than what it showed first.
    """

    key_file: Path
    known_hosts: Path
    connect_timeout_s: int
    trust_first_key: bool = False

    def options(self, *, new_keys: Path | None = None) -> list[str]:
        """ssh options that hold for every connection of the queen: only known host keys, or any, kept in `new_keys`."""
        settings = [
            f'UserKnownHostsFile="{new_keys or self.known_hosts}"',
            "GlobalKnownHostsFile=/dev/null",
            "HashKnownHosts=no",
            "UpdateHostKeys=no",
            "StrictHostKeyChecking=" + ("accept-new" if new_keys else "yes"),
            "IdentitiesOnly=yes",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=4",
        ]
        return [argument for setting in settings for argument in ("-o", setting)]


@dataclass(frozen=True)
class Ssh:
    """Logs in to one host. `environment` is that of the ssh process."""

    host: Host
    setup: SshSetup
    environment: dict[str, str]

    async def run(
        self, command: str, *, typed: str | None = None, options: Sequence[str] | None = None
    ) -> tuple[int, str]:
        """Exit status and standard error of a command, which reads `typed`; `options` stand in for the setup's own."""
        arguments = self._arguments(self.setup.options() if options is None else options)
        command_line = [*arguments, f"sh -c {shlex.quote(command)}"]
        child = await Child.start(command_line, environment=self.environment, stderr=subprocess.PIPE)
        line = None if typed is None else typed.encode() + b"\n"
        out, err = Tail(0), Tail(_MOST_ERR)
        try:
            within_s = self.setup.connect_timeout_s + _ANSWER_TIMEOUT_S
            code = await hear_out(child, out, err, typed=line, within_s=within_s)
        except TimeoutError:
            return FAILED, "Connection timed out while the host was logging us in"
        return code, err.text

    def _arguments(self, options: Sequence[str]) -> Sequence[str]:
        host, setup = self.host, self.setup
        return [
            "ssh",
            *options,
            *("-o", "BatchMode=yes", "-o", f"ConnectTimeout={setup.connect_timeout_s}"),
            *("-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "LogLevel=ERROR"),
            *("-i", host.key_file or str(setup.key_file)),
            *host.ssh_args,
            *("-p", str(host.ssh_port), "-l", host.ssh_user, "--", host.ssh_host),
        ]
