"""A fleet of real Debian machines on this one machine: booted by systemd-nspawn, as root, without Docker.

    with Fleet(folder) as fleet:
        host = fleet.boot("hive1", suite="trixie", authorized_keys=[public_key])

On the command line, hosts outlive the command and are kept in a state folder:

    python -m tests.hosts.machines up hive1 --suite trixie --authorized-key ~/.ssh/id_ed25519.pub --state-dir DIR
    python -m tests.hosts.machines down --state-dir DIR
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from . import debs, disks, images, network, nspawn
from .disks import Setup, User
from .host import Host
from .images import HostsError, say
from .network import Bridge

__all__ = ["DEFAULT_USERS", "Fleet", "Host", "HostsError", "User", "missing"]

DEFAULT_USERS: Mapping[str, User] = {"llama-orch": {"sudo": "nopasswd"}}
TOOLS = ("debootstrap", "systemd-nspawn", "ip", "bridge", "unshare", "nsenter", "ssh")


def missing() -> str:
    """Why no host can be booted here; empty when they can."""
    if os.geteuid() != 0:
        return "test hosts need root (systemd-nspawn, overlay mounts, a bridge)"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"missing commands: {', '.join(absent)}; install the packages of tests/hosts/packages.txt"
    return ""


class Fleet:
    """Hosts on a bridge of their own, with a server of Debian packages beside them.

    A fleet that is not ``persistent`` belongs to this process: ``close`` ends it, and if that never runs, the
    next fleet on this machine clears it away. A persistent one lives in its folder until ``close``.
    """

    def __init__(self, state_dir: Path, *, persistent: bool = False, packages: Sequence[str] = debs.PACKAGES) -> None:
        """Nothing happens before ``open`` or ``with``."""
        self.state_dir = state_dir.absolute()
        self.persistent = persistent
        self.packages = tuple(packages)

    def __enter__(self) -> Fleet:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- life

    def open(self) -> None:
        """Make the network, or find it again. Raises HostsError where this machine cannot have one."""
        if why := missing():
            raise HostsError(why)
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with self._lock(), network.machine_lock():
            network.remove_leftovers()
            record = self._record()
            if record and not self.persistent:
                raise HostsError(f"{self.state_dir} holds a fleet already: each takes a folder of its own")
            for part in ("hosts", "packages"):
                (self.state_dir / part).mkdir(exist_ok=True)
            bridge = Bridge(record["subnet"] if record else network.free_subnet())
            if not bridge.exists():
                bridge.create(network.owner_text(self.state_dir, None if self.persistent else os.getpid()))
            elif not bridge.belongs_to(self.state_dir):
                raise HostsError(
                    f"{bridge.name} is another fleet's by now: take the one in {self.state_dir} down first"
                )
            if not record:
                record = {"subnet": bridge.subnet, "port": self._serve(bridge, 0)}
                temporary = self.state_dir / "fleet.json.tmp"
                temporary.write_text(json.dumps(record))
                temporary.rename(self.state_dir / "fleet.json")
            elif not nspawn.pids(f"{bridge.name}/server"):
                self._serve(bridge, record["port"])

    def close(self) -> None:
        """End every host, take the network away and remove the disks. Consoles stay, unless persistent."""
        with network.machine_lock():
            if record := self._record():
                bridge = Bridge(record["subnet"])
                if bridge.belongs_to(self.state_dir):
                    bridge.remove()
                (self.state_dir / "fleet.json").unlink()
        for folder in self._folders():
            for part in ("upper", "work", "root", "disk"):
                images.remove_tree(folder / part)
            for file in ("record.json", disks.IMAGE):
                (folder / file).unlink(missing_ok=True)
        images.remove_tree(self.state_dir / "packages")
        if self.persistent:
            images.remove_tree(self.state_dir / "hosts")

    # ---- hosts

    @property
    def bridge(self) -> Bridge:
        """The fleet's network. Raises HostsError when the fleet is not open."""
        if record := self._record():
            return Bridge(record["subnet"])
        raise HostsError(f"no fleet in {self.state_dir}: open it first")

    @property
    def address(self) -> str:
        """Address of this machine as the hosts see it."""
        return self.bridge.address

    @property
    def packages_url(self) -> str:
        """Where the hosts get Debian packages: below it a flat repository for each suite."""
        return f"http://{self.address}:{self._record().get('port')}"

    def hosts(self) -> dict[str, Host]:
        """Every host of the fleet by name, on or off."""
        found = [Host.load(folder) for folder in self._folders() if (folder / "record.json").exists()]
        return {host.name: host for host in sorted(found, key=lambda one: one.number)}

    def host(self, name: str) -> Host:
        """The host of that name. Raises HostsError when there is none."""
        try:
            return self.hosts()[name]
        except KeyError:
            raise HostsError(f"no host {name} in {self.state_dir}") from None

    def boot(
        self,
        name: str,
        *,
        suite: str = "bookworm",
        python: bool | str = True,
        users: Mapping[str, User] | None = None,
        authorized_keys: Sequence[str] = (),
        small_disk: str = "",
        timeout: float = 90.0,
    ) -> Host:
        """Make a fresh host and switch it on; returns when ssh answers (seconds until giving up).

        ``users`` (default: llama-orch with sudo) get ``authorized_keys``, which are public keys. ``python`` is
        full (True), minimal (too little for Ansible's modules) or none (False). The first host of a suite on this
        machine waits for its image. ``small_disk`` is the path of a folder that is a disk of its own, of 96 MiB.
        Raises HostsError.
        """
        image = images.image(suite, python if isinstance(python, str) else "full" if python else "none")
        self._offer_packages(suite)
        host = self._make(name, image, users if users is not None else DEFAULT_USERS, authorized_keys, small_disk)
        began = time.monotonic()
        host.boot_again(timeout)
        say(f"{name} ({suite}) is up at {host.address} after {time.monotonic() - began:.1f} s")
        return host

    def remove(self, name: str) -> None:
        """Take a host's power and its disk away; nothing to do where there is none of that name."""
        host = self.hosts().get(name)
        if host is not None:
            host.power_cut()
            images.remove_tree(host.folder)

    # ---- inside

    def _record(self) -> dict[str, int]:
        try:
            return json.loads((self.state_dir / "fleet.json").read_text())
        except FileNotFoundError:
            return {}

    def _folders(self) -> list[Path]:
        top = self.state_dir / "hosts"
        return sorted(one for one in top.iterdir() if one.is_dir()) if top.is_dir() else []

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.state_dir / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _serve(self, bridge: Bridge, port: int) -> int:
        log = self.state_dir / "packages.log"
        root = Path(__file__).resolve().parents[2]
        nspawn.daemon(
            group=f"{bridge.name}/server", log=log,
            command=["env", f"PYTHONPATH={root}", sys.executable, "-m", "tests.hosts.debs",
                     bridge.address, str(port), self.state_dir / "packages"],
        )  # fmt: skip
        until = time.monotonic() + 20
        while "\n" not in (text := log.read_text()):
            if time.monotonic() > until or not nspawn.pids(f"{bridge.name}/server"):
                raise HostsError(f"the package server did not start: {text}")
            time.sleep(0.02)
        return int(text.splitlines()[0])

    def _offer_packages(self, suite: str) -> None:
        folder = debs.folder(suite, self.packages)
        with self._lock():
            link = self.state_dir / "packages" / suite
            if not link.is_symlink() or link.readlink() != folder:
                link.unlink(missing_ok=True)
                link.symlink_to(folder, target_is_directory=True)

    def _make(
        self,
        name: str,
        image: images.Image,
        users: Mapping[str, User],
        authorized_keys: Sequence[str],
        small_disk: str,
    ) -> Host:
        bridge = self.bridge
        with self._lock():
            there = self.hosts()
            if name in there:
                raise HostsError(f"there is a host {name} already: remove it, or switch it on again")
            used = {host.number for host in there.values()}
            number = next((one for one in range(2, 255) if one not in used), None)
            if number is None:
                raise HostsError("a fleet has at most 253 hosts")
            folder = self.state_dir / "hosts" / name
            setup = Setup(
                name, bridge.host_address(number), bridge.address,
                debs.sources_list(self.packages_url, image.suite), users, authorized_keys,
            )  # fmt: skip
            script = setup.script()
            images.remove_tree(folder)
            folder.mkdir()
            layers = tuple(map(str, image.layers))
            host = Host(name, number, bridge.subnet, image.suite, image.python, layers, folder, small_disk)
            if small_disk:
                disks.make_image(folder / disks.IMAGE)
            host.run_offline(script)
            host.save()
        return host


if __name__ == "__main__":
    from .command import main

    sys.exit(main())
