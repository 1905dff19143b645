"""One test host: what can be done with it and to it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from . import disks, images, nspawn
from .images import HostsError
from .network import Bridge, ip

# A station's address, administered locally, that no machine has.
NOBODY = "02:0a:d5:00:00:00"
OFFLINE = """
mount -t overlay overlay -o "$2" "$1"
[ -z "$3" ] || { mkdir -p "$1$4"; mount -o loop "$3" "$1$4"; }
mount -t proc proc "$1/proc"
exec chroot "$1" /bin/bash -eu
"""
CLEAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Host:
    """A machine of a fleet. Its disk and record are in ``folder``; whether it runs is asked each time."""

    name: str
    number: int
    subnet: int
    suite: str
    python: str
    layers: tuple[str, ...]
    folder: Path
    # Where in the host a small disk of its own is, which can be full without anybody else's; empty for none.
    small_disk: str = ""

    @property
    def bridge(self) -> Bridge:
        """The network that the host hangs on."""
        return Bridge(self.subnet)

    @property
    def address(self) -> str:
        """IPv4 address."""
        return self.bridge.host_address(self.number)

    @property
    def group(self) -> str:
        """Control group, below that of the fleet."""
        return f"{self.bridge.name}/{self.number}"

    @property
    def machine(self) -> str:
        """Name for systemd-nspawn; short, as the link's name is made of it."""
        return f"{self.bridge.name}-{self.number}"

    @property
    def link(self) -> str:
        """This machine's end of the host's cable."""
        return f"vb-{self.machine}"

    @property
    def host_key(self) -> str:
        """Public ssh host key (``ssh-ed25519 AAAA…``), for a known_hosts file."""
        return (self.folder / "upper/etc/ssh/ssh_host_ed25519_key.pub").read_text().strip()

    @property
    def root(self) -> Path:
        """The running host's files, as this machine's root sees them. Raises HostsError while it is off."""
        leader = nspawn.leader(self.group)
        if leader is None:
            raise HostsError(f"{self.name} is off")
        return Path(f"/proc/{leader}/root")

    @property
    def running(self) -> bool:
        """Whether the machine is on."""
        return nspawn.leader(self.group) is not None

    def as_json(self) -> dict[str, Any]:
        """What the command line prints."""
        return {
            "name": self.name, "address": self.address, "port": 22, "suite": self.suite, "python": self.python,
            "running": self.running, "pid": nspawn.supervisor(self.group), "leader_pid": nspawn.leader(self.group),
            "host_key": self.host_key, "controller": self.bridge.address, "bridge": self.bridge.name,
            "folder": str(self.folder), "console": str(self.folder / "console.log"),
        }  # fmt: skip

    def save(self) -> None:
        """Write the record from which ``load`` makes the same object; atomic."""
        record = asdict(self) | {"folder": str(self.folder)}
        temporary = self.folder / "record.json.tmp"
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.rename(self.folder / "record.json")

    @classmethod
    def load(cls, folder: Path) -> Host:
        """The host whose record is in the folder."""
        record = json.loads((folder / "record.json").read_text())
        return cls(**(record | {"folder": folder, "layers": tuple(record["layers"])}))

    # ---- power

    def boot_again(self, timeout: float = 90.0) -> None:
        """Switch on, with the disk as it is; returns when ssh answers (seconds until giving up)."""
        if self.running:
            raise HostsError(f"{self.name} is on already")
        nspawn.end_group(self.group)
        image = self.folder / disks.IMAGE
        # Twice in use, the small disk would be damaged.
        self.wait_until(lambda: not disks.in_use(image), 20.0, "let go of its small disk")
        nspawn.boot(
            group=self.group, folder=self.folder, layers=[Path(one) for one in self.layers],
            bridge=self.bridge.name, machine=self.machine, hostname=self.name,
            disk=(image, self.small_disk) if self.small_disk else None,
        )  # fmt: skip
        self.wait_for_ssh(timeout)

    def power_off(self, timeout: float = 30.0) -> None:
        """Shut down in order, as a short press of the power button does."""
        supervisor = nspawn.supervisor(self.group)
        if supervisor is not None:
            with suppress(ProcessLookupError):
                os.kill(supervisor, signal.SIGTERM)
        self.wait_until(lambda: not nspawn.pids(self.group), timeout, "shut down")
        nspawn.end_group(self.group)

    def power_cut(self) -> None:
        """Take the power away: every process of the host is gone at once, unwarned.

        What it had written without fsync is kept, unlike on a real machine: the kernel is this machine's.
        """
        leader = nspawn.leader(self.group)
        if leader is not None:
            with suppress(ProcessLookupError):
                os.kill(leader, signal.SIGKILL)
        nspawn.end_group(self.group)
        # The kernel takes the cable away a moment after the last process.
        self.wait_until(lambda: not Path(f"/sys/class/net/{self.link}").exists(), 20.0, "lose its link")

    # ---- network

    def cut_cable(self) -> None:
        """Pull the cable: both ends see that there is no carrier."""
        ip("link", "set", self.link, "down")

    def mend_cable(self) -> None:
        """Put the cable back."""
        ip("link", "set", self.link, "up")

    def drop_packets(self) -> None:
        """Lose every packet in both directions with the carrier still there: a line that is half open."""
        self._port_state(0)

    def pass_packets(self) -> None:
        """Undo ``drop_packets``."""
        self._port_state(3)

    def lose_packets(self, direction: Literal["to", "from"]) -> None:
        """Lose every packet to the host, or from it, at this machine's end; the other direction goes on.

        What is lost is sent, but to a station that nobody is.
        """
        if direction == "to":
            ip("neighbour", "replace", self.address, "lladdr", NOBODY, "dev", self.bridge.name, "nud", "permanent")
        else:
            command = ["ip", "neighbour", "replace", self.bridge.address, "lladdr", NOBODY]
            self.run([*command, "dev", "host0", "nud", "permanent"], check=True)

    def lose_no_packets(self) -> None:
        """Undo ``lose_packets``, where it was done."""
        with suppress(HostsError):
            ip("neighbour", "delete", self.address, "dev", self.bridge.name)
        with suppress(HostsError):
            self.run(["ip", "neighbour", "delete", self.bridge.address, "dev", "host0"])

    def _port_state(self, state: int) -> None:
        command = ["bridge", "link", "set", "dev", self.link, "state", str(state)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode != 0:
            raise HostsError(f"{' '.join(command)}: {done.stderr.strip()}")

    def answers(self, timeout: float = 1.0, connect_timeout: float = 1.0) -> bool:
        """Whether an ssh server greets at the host's address; ``timeout`` seconds for each step."""
        with suppress(OSError), socket.create_connection((self.address, 22), timeout=connect_timeout) as connection:
            connection.settimeout(timeout)
            return connection.recv(4) == b"SSH-"
        return False

    def wait_for_ssh(self, timeout: float = 90.0) -> None:
        """Wait until ssh answers; raises HostsError with the end of the console when it does not."""
        # What is sent before the host has its address is lost and sent again only after a second: look first.
        self.wait_until(
            lambda: nspawn.listens(self.group, self.address, 22) and self.answers(),
            timeout,
            "answer by ssh",
            must_run=True,
        )

    def wait_system(self, timeout: float = 60.0) -> str:
        """Wait for the end of the boot; what systemd says of it: ``running``, ``degraded`` …"""
        return self.run("systemctl is-system-running --wait", timeout=timeout).stdout.strip()

    def wait_until(self, true: Callable[[], bool], timeout: float, what: str, must_run: bool = False) -> None:
        """Ask again and again until it is true; raises HostsError after ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while not true():
            dead = must_run and not nspawn.pids(self.group)
            if dead or time.monotonic() > until:
                why = "its process ended" if dead else f"not within {timeout:.0f} s"
                raise HostsError(f"{self.name} did not {what}: {why}. Its console ends:\n{self.console()[-2000:]}")
            time.sleep(0.02)

    def console(self) -> str:
        """All that the host has written to its console."""
        with suppress(FileNotFoundError):
            return (self.folder / "console.log").read_text(errors="replace")
        return ""

    # ---- inside

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = False,
        user: str = "root",
        stdin: str = "",
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host, past its network; a string goes to a shell. Needs the host to be on.

        With ``check``, raises HostsError with the command's output when it fails.
        """
        leader = nspawn.leader(self.group)
        if leader is None:
            raise HostsError(f"{self.name} is off")
        inner = ["bash", "-c", command] if isinstance(command, str) else list(command)
        if user != "root":
            inner = ["runuser", "-u", user, "--", *inner]
        home = "/root" if user == "root" else f"/home/{user}"
        done = subprocess.run(
            ["nsenter", "--all", f"--target={leader}", "env", "-i", f"PATH={CLEAN_PATH}", f"HOME={home}",
             "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", *inner],
            input=stdin, text=True, capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise HostsError(f"{self.name}: {command!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def read_file(self, path: str) -> str:
        """Content of a file of the running host."""
        return self.run(["cat", path], check=True).stdout

    def write_file(self, path: str, text: str, mode: str = "0644", owner: str = "root") -> None:
        """Write a file of the running host; its folder must be there."""
        quoted = shlex.quote(path)
        self.run(f"cat > {quoted} && chown {owner} {quoted} && chmod {mode} {quoted}", stdin=text, check=True)

    def run_offline(self, script: str) -> str:
        """Run a shell script on the disk of a host that is off; its stdout."""
        if self.running:
            raise HostsError(f"{self.name} is on: its disk is in use")
        options = images.overlay(self.folder / "upper", [Path(one) for one in self.layers])
        image = self.folder / disks.IMAGE
        self.wait_until(lambda: not disks.in_use(image), 20.0, "let go of its small disk")
        return images.in_mount_namespace(
            OFFLINE, self.folder / "root", options, image if self.small_disk else "", self.small_disk, stdin=script
        )

    def ssh(
        self, user: str, key: Path, command: str, *, stdin: str = "", timeout: float = 30.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command over ssh as a user's login would, holding the host to its own key; never asks anything."""
        known = self.folder / "known_hosts"
        known.write_text(f"{self.address} {self.host_key}\n")
        return subprocess.run(
            ["ssh", "-F", "none", "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
             "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=5",
             f"{user}@{self.address}", command],
            input=stdin, text=True, capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
