"""Processes of test hosts: booted by systemd-nspawn, found and ended by their control group.

Every host has a control group of its own, ``llama-orch-hosts/<bridge>/<number>``. It has to: hosts booted
from one group would share the group in which systemd keeps its services. And it is how processes are
found again, whatever became of the one that started them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from .images import HostsError, in_mount_namespace, overlay

# The hierarchies in which nspawn makes groups: version 1's one for systemd, version 2 beside it or alone.
HIERARCHIES = (Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
GROUPS = "llama-orch-hosts"

JOIN = """
for top in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    [ -e "$top/cgroup.procs" ] || continue
    mkdir -p "$top/$1"
    echo $$ > "$top/$1/cgroup.procs"
done
"""
# The mounts belong to the booted machine alone and end with it.
BOOT = """
mount -t overlay overlay -o "$2" "$3"
log="$4"; image="$5"; disk="$6"; shift 6
[ -z "$image" ] || mount -o loop "$image" "$disk"
# With this status nspawn says that the machine reboots and wants to be started again.
setsid --fork bash -c 'while :; do "$@"; [ $? = 133 ] || break; done' bash "$@" < /dev/null >> "$log" 2>&1
"""
DAEMON = """
log="$2"; shift 2
setsid --fork "$@" < /dev/null > "$log" 2>&1
"""


def start_time(pid: int) -> int:
    """When a living process began, in clock ticks since the boot; 0 when it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def tops() -> list[Path]:
    """Our folder in each hierarchy that this machine has, whether or not it has been made yet."""
    return [top / GROUPS for top in HIERARCHIES if (top / "cgroup.procs").exists()]


def groups() -> list[str]:
    """Names of the fleets that have a control group."""
    return sorted({entry.name for top in tops() if top.is_dir() for entry in top.iterdir() if entry.is_dir()})


def pids(group: str) -> list[int]:
    """Processes in a group and all groups below it."""
    found: set[int] = set()
    for top in tops():
        # walk takes it calmly when a group vanishes meanwhile, as groups do.
        for folder, _, _ in os.walk(top / group):
            with suppress(OSError):
                found.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
    # 0 stands for processes that this namespace cannot see.
    return sorted(pid for pid in found if pid and start_time(pid))


def end_group(group: str, timeout: float = 20.0) -> None:
    """Kill every process of a group and remove the group; nothing to do where it is not there."""
    until = time.monotonic() + timeout
    while left := pids(group):
        if time.monotonic() > until:
            raise HostsError(f"processes of {group} do not end: {left}")
        # Killing a host's first process ends its whole namespace at once; nspawn's death would not.
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for top in tops():
        for folder, _, _ in os.walk(top / group, topdown=False):
            remove_group_folder(Path(folder), until)


def remove_group_folder(folder: Path, until: float) -> None:
    """Remove one group; a process that has just died keeps its group busy for a moment."""
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > until:
                raise HostsError(f"control group {folder} stays busy") from error
            time.sleep(0.02)
        else:
            return


def supervisor(group: str) -> int | None:
    """Process id of a host's systemd-nspawn; None when the host is off."""
    for pid in pids(group):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd-nspawn" and len(namespace_ids(pid)) == 1:
                return pid
    return None


def leader(group: str) -> int | None:
    """Process id of a host's own first process; None when the host is off."""
    for pid in pids(group):
        with suppress(OSError):
            ids = namespace_ids(pid)
            if len(ids) == 2 and ids[-1] == 1:
                return pid
    return None


def namespace_ids(pid: int) -> list[int]:
    """A process's ids, from our process namespace inwards."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return [int(one) for one in line.split()[1:]]
    return []


def listens(group: str, address: str, port: int) -> bool:
    """Whether a host has that address and something listens on that port, seen without its network."""
    first = leader(group)
    try:
        net = Path(f"/proc/{first}/net")
        listening = re.compile(rf":{port:04X} [0:]+ 0A ")
        sockets = (net / "tcp").read_text() + (net / "tcp6").read_text()
        return address in (net / "fib_trie").read_text() and listening.search(sockets) is not None
    except OSError:
        return False


def boot(
    *,
    group: str,
    folder: Path,
    layers: Sequence[Path],
    bridge: str,
    machine: str,
    hostname: str,
    disk: tuple[Path, str] | None = None,
) -> None:
    """Boot a machine on its disk (``folder/upper`` over the layers) and return at once.

    ``disk`` is the image of one more, and where in the machine it is to be. Inside are control groups of version 2
    alone, which Debian 13 needs, also where this machine still has version 1. The console goes to
    ``folder/console.log``.
    """
    options = overlay(folder / "upper", layers)
    command = [
        "env", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", "SYSTEMD_NSPAWN_LOCK=0",
        "systemd-nspawn", f"--directory={folder / 'root'}", "--register=no", "--keep-unit", "--boot",
        f"--network-bridge={bridge}", f"--machine={machine}", f"--hostname={hostname}", "--settings=no",
        "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only",
    ]  # fmt: skip
    mounted = folder / "disk"
    if disk is not None:
        mounted.mkdir(exist_ok=True)
        command.append(f"--bind={mounted}:{disk[1]}")
    in_mount_namespace(
        JOIN + BOOT, group_path(group), options, folder / "root", folder / "console.log",
        disk[0] if disk else "", mounted, *command, new_pids=False,
    )  # fmt: skip


def daemon(*, group: str, log: Path, command: Sequence[str | Path]) -> None:
    """Start a process that outlives us, in a control group of a fleet; its output goes to ``log``."""
    subprocess.run(
        ["bash", "-euc", JOIN + DAEMON, "bash", group_path(group), str(log), *map(str, command)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip


def group_path(group: str) -> str:
    """A group's path below a hierarchy's top."""
    return f"{GROUPS}/{group}"
