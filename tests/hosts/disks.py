"""What is particular to one host's disk: its name, address, users and keys."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from .images import HostsError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}$")
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}$")

NETWORK = """[Match]
Name=host0
Virtualization=container

[Network]
Address={address}/24
LinkLocalAddressing=no
LLDP=no
EmitLLDP=no
# As on a server whose network ifupdown set: a cable that is cut takes no address away.
ConfigureWithoutCarrier=yes
IgnoreCarrierLoss=yes
"""


# The image of a host's small disk, in the host's folder.
IMAGE = "disk.ext4"
IMAGE_MIB = 96


class User(TypedDict, total=False):
    """A login: ``sudo`` is nopasswd, password, or nothing; ``password`` is also for sudo."""

    sudo: str | None
    password: str


@dataclass(frozen=True)
class Setup:
    """What a host's first disk is made of; ``users`` with the name ``root`` opens root's own login."""

    name: str
    address: str
    controller: str
    sources_list: str
    users: Mapping[str, User]
    authorized_keys: Sequence[str]

    def script(self) -> str:
        """Shell script to be run in a chroot of the disk. Raises HostsError for what cannot be."""
        if not NAME.match(self.name):
            raise HostsError(f"host name {self.name!r}: lower case letters, digits and '-', at most 41")
        parts = [
            write("/etc/hostname", f"{self.name}\n"),
            write(
                "/etc/hosts",
                f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n{self.controller} controller\n::1 localhost\n",
            ),
            write("/etc/machine-id", f"{uuid.uuid4().hex}\n"),
            write("/etc/apt/sources.list", self.sources_list),
            write(
                "/etc/systemd/network/10-host0.network",
                NETWORK.format(address=self.address),
            ),
            write("/etc/default/locale", "LANG=C.UTF-8\n"),
            # No name server: a look-up then fails at once, as it does on a host without a way out.
            write("/etc/resolv.conf", ""),
            "ssh-keygen -q -t ed25519 -N '' -C '' -f /etc/ssh/ssh_host_ed25519_key",
        ]
        for name, user in self.users.items():
            parts += user_commands(name, user, self.authorized_keys)
        return "\n".join(parts) + "\n"


def user_commands(name: str, user: User, authorized_keys: Sequence[str]) -> list[str]:
    """Shell commands that make one login."""
    if not USER.match(name):
        raise HostsError(f"user name {name!r} is none that useradd takes")
    sudo = user.get("sudo")
    if sudo not in (None, "", "nopasswd", "password"):
        raise HostsError(f"user {name}: sudo is {sudo!r}; nopasswd, password, or leave it out")
    if sudo == "password" and not user.get("password"):
        raise HostsError(f"user {name}: sudo by password needs a password")
    parts = []
    if name != "root":
        parts.append(f"useradd --create-home --shell /bin/bash {name}")
    if password := user.get("password"):
        parts.append(f"chpasswd <<< {shlex.quote(f'{name}:{password}')}")
    if sudo:
        rule = "NOPASSWD: ALL" if sudo == "nopasswd" else "ALL"
        parts.append(write(f"/etc/sudoers.d/90-{name}", f"{name} ALL=(ALL:ALL) {rule}\n", mode="0440"))
    if authorized_keys:
        home = "/root" if name == "root" else f"/home/{name}"
        parts += [
            f"install -d -m 0700 -o {name} -g {name} {home}/.ssh",
            write(f"{home}/.ssh/authorized_keys", "".join(f"{key.strip()}\n" for key in authorized_keys), mode="0600"),
            f"chown {name}:{name} {home}/.ssh/authorized_keys",
        ]
    return parts


def write(path: str, text: str, mode: str = "0644") -> str:
    """Shell command that writes a file."""
    return f"printf %s {shlex.quote(text)} > {path}; chmod {mode} {path}"


def make_image(image: Path) -> None:
    """Make a small disk: a file system in a file, whose last block anybody may take. Raises HostsError."""
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB * 2**20)
    command = ["mkfs.ext4", "-q", "-F", "-m", "0", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise HostsError(f"{' '.join(command)}: {done.stderr.strip()}")


def in_use(image: Path) -> bool:
    """Whether the kernel has that image as a disk."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        # One that is let go of at this moment has none.
        with contextlib.suppress(OSError):
            if backing.read_text().strip() == str(image):
                return True
    return False
