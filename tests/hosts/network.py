"""The private network of a fleet of test hosts: one bridge with a subnet of its own."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

from . import nspawn
from .images import HostsError, say

# A bridge's name carries its subnet: lorch7 is 10.213.7.0/24. Its alias says whose it is.
PREFIX = "lorch"
ALIAS = "llama-orch-hosts"
MACHINE_LOCK = Path("/run/lock/llama-orch-hosts.lock")


def ip(*arguments: str) -> str:
    """Run iproute2's ``ip``; its stdout. Raises HostsError with what it said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise HostsError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def machine_lock() -> Iterator[None]:
    """One at a time on this machine: choosing a subnet, and removing what dead runs left."""
    MACHINE_LOCK.parent.mkdir(parents=True, exist_ok=True)
    with MACHINE_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Bridge:
    """A fleet's bridge: its subnet's third number names everything in it."""

    subnet: int

    @property
    def name(self) -> str:
        """Name of the network link."""
        return f"{PREFIX}{self.subnet}"

    @property
    def address(self) -> str:
        """Address of this machine, the controller, in the fleet's network."""
        return self.host_address(1)

    def host_address(self, number: int) -> str:
        """Address of the fleet's machine with that number, 2 to 254."""
        return f"10.213.{self.subnet}.{number}"

    def exists(self) -> bool:
        """Whether the link is there."""
        return Path(f"/sys/class/net/{self.name}").exists()

    def belongs_to(self, state_dir: Path) -> bool:
        """Whether the link is there and was made for that fleet."""
        try:
            alias = Path(f"/sys/class/net/{self.name}/ifalias").read_text()
        except FileNotFoundError:
            return False
        return alias.startswith(ALIAS) and alias.rstrip("\n").endswith(f"dir={state_dir}")

    def create(self, owner: str) -> None:
        """Make the link. ``owner`` is what ``owner_lives`` understands."""
        ip("link", "add", self.name, "type", "bridge", "forward_delay", "0", "stp_state", "0")
        # Without an address of its own a bridge takes that of some port, and changes it when that host goes.
        ip("link", "set", self.name, "address", f"02:0a:d5:{self.subnet:02x}:00:01", "alias", f"{ALIAS} {owner}", "up")
        ip("address", "add", f"{self.address}/24", "dev", self.name)

    def remove(self) -> None:
        """End every process of this network and take the link away, where they are there."""
        nspawn.end_group(self.name)
        if self.exists():
            ip("link", "delete", self.name)


def owner_text(state_dir: Path, pid: int | None) -> str:
    """What marks a bridge as ours: alive as long as the process is (or, with None, as the folder is there)."""
    process = f"pid={pid} start={nspawn.start_time(pid)} " if pid is not None else ""
    text = f"{process}dir={state_dir}"
    if len(text) > 200:
        raise HostsError(f"the state folder's path is too long to be kept in a link's alias: {state_dir}")
    return text


def owner_lives(alias: str) -> bool:
    """Whether the owner that an alias names is still there."""
    if process := re.search(r"pid=(\d+) start=(\d+) ", alias):
        return nspawn.start_time(int(process[1])) == int(process[2])
    folder = re.search(r"dir=(.+)$", alias)
    return folder is not None and Path(folder[1]).is_dir()


def remove_leftovers() -> None:
    """Remove bridges, with all that runs on them, whose owner is dead. Needs the machine lock."""
    ours = re.compile(rf"{PREFIX}(\d+)$")
    for link in json.loads(ip("-json", "link", "show", "type", "bridge") or "[]"):
        name = ours.match(link.get("ifname", ""))
        alias = link.get("ifalias", "")
        # Without an alias its maker died within create(), as the lock is ours.
        if name and (not alias or (alias.startswith(ALIAS) and not owner_lives(alias))):
            say(f"removing {name[0]}, left by a run that is dead ({alias})")
            Bridge(int(name[1])).remove()
    for group in nspawn.groups():
        if ours.match(group) and not Path(f"/sys/class/net/{group}").exists():
            say(f"ending what is left of {group}")
            nspawn.end_group(group)


def free_subnet() -> int:
    """A third number whose subnet touches no address or route of this machine. Needs the machine lock."""
    taken: list[IPv4Network] = []
    for link in json.loads(ip("-json", "address", "show")):
        for one in link.get("addr_info", ()):
            if one.get("family") == "inet":
                taken.append(IPv4Interface(f"{one['local']}/{one['prefixlen']}").network)
    for route in json.loads(ip("-json", "route", "show", "table", "all")):
        destination = route.get("dst", "")
        # A wide route (a default, a VPN's 10.0.0.0/8) is overruled by ours; one within ours would not be.
        if re.match(r"\d+\.\d+\.\d+\.\d+", destination):
            network = IPv4Network(destination, strict=False)
            if network.prefixlen >= 16:
                taken.append(network)
    for subnet in range(1, 255):
        if not any(IPv4Network(f"10.213.{subnet}.0/24").overlaps(one) for one in taken):
            return subnet
    raise HostsError("no free subnet in 10.213.0.0/16: take other fleets down first")
