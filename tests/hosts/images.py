"""Root file systems of the test hosts: built once with debootstrap, kept in the user's cache.

An image is a list of folders, upper layer first, as overlayfs takes them. The base has no Python, as a
bare host may have none; a thin layer on top of it adds one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITES = ("bookworm", "trixie")
BASE_PACKAGES = ("dbus", "iproute2", "openssh-server", "sudo", "systemd-sysv")
# How much Python a host has. Ansible's modules do not run with the minimal one, which lacks most of the library.
PYTHONS: dict[str, tuple[str, ...]] = {"none": (), "minimal": ("python3-minimal",), "full": ("python3",)}
# Raised whenever the scripts below change what an image contains.
RECIPE = 1
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BUILD_TIMEOUT_S = 1800

# networkd is off in a plain Debian; it is what sets the static address. Its wait-online unit would only
# delay the boot. Host keys and the machine id are made for each host, so none may be in the image.
FINISH_BASE = """
systemctl enable systemd-networkd.service
systemctl mask systemd-networkd-wait-online.service
rm -f /etc/ssh/ssh_host_* /etc/hostname /etc/resolv.conf
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/bootstrap.log
"""
ADD_PACKAGES = """
apt-get update -q
apt-get install -q -y --no-install-recommends {packages}
apt-get clean
rm -rf /var/lib/apt/lists/* /etc/resolv.conf
"""


class HostsError(RuntimeError):
    """A test host, its image or its network could not be made; the message says what to do."""


@dataclass(frozen=True)
class Image:
    """A root file system ready to be booted: folders for overlayfs, upper layer first."""

    suite: str
    python: str
    layers: tuple[Path, ...]


def say(text: str) -> None:
    """Tell the person who waits; on stderr, so that commands keep stdout for their answer."""
    sys.stderr.write(f"[hosts] {text}\n")
    sys.stderr.flush()


def cache_dir() -> Path:
    """Folder of everything that is slow to make and the same for every run."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "llama-orch" / "hosts"


def key_of(*inputs: object) -> str:
    """Short name of a set of inputs: the same inputs give the same cached folder."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=list).encode()).hexdigest()[:12]


def mirror() -> str:
    """Base address of the Debian archive: what this machine's own apt uses.

    ``LLAMA_ORCH_DEBIAN_MIRROR`` overrides it, for machines that are not Debian themselves.
    """
    if given := os.environ.get("LLAMA_ORCH_DEBIAN_MIRROR"):
        return given
    found = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    known = {*SUITES, "bullseye", "forky", "sid", "oldstable", "stable", "testing", "unstable"}
    for line in found.stdout.splitlines():
        uri, release, component = line.split("|")
        if release in known and component == "main" and uri.startswith("http"):
            return uri
    raise HostsError(
        "no Debian archive found in this machine's apt sources (/etc/apt/sources.list*): "
        "set LLAMA_ORCH_DEBIAN_MIRROR to the address of one"
    )


def build_environment() -> dict[str, str]:
    """A small environment for chroot and debootstrap, with apt's proxy where one is configured."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    asked = subprocess.run(
        ["apt-config", "shell", "PROXY", "Acquire::http::Proxy"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "='" in asked.stdout:
        environment["http_proxy"] = asked.stdout.split("='", 1)[1].split("'", 1)[0]
    return environment


def in_mount_namespace(
    script: str, *arguments: str | Path, stdin: str = "", timeout: float = 300.0, new_pids: bool = True
) -> str:
    """Run a bash script as root with mounts that nobody else sees and that end with it; its stdout.

    Whatever kills the script, no mount stays behind, and no child either unless ``new_pids`` is off.
    Raises HostsError with the end of its output.
    """
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *(["--pid", "--fork", "--kill-child"] if new_pids else []),
         "bash", "-euc", script, "bash", *map(str, arguments)],
        input=stdin, text=True, capture_output=True, timeout=timeout, env=build_environment(), check=False,
        # The lock of cached() goes along: a build whose Python was killed holds it until its last child ends.
        close_fds=not new_pids,
    )  # fmt: skip
    if done.returncode != 0:
        raise HostsError(f"a step ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


CHROOT = """
mount -t proc proc "$1/proc"
[ -e "$1/etc/resolv.conf" ] || cp /etc/resolv.conf "$1/etc/resolv.conf"
chroot "$1" /bin/bash -eu
"""


def overlay(upper: Path, layers: Sequence[Path]) -> str:
    """Mount options that show the layers with a writable folder on top; makes that folder's neighbours.

    ``upper`` is the folder ``upper`` of a work folder; ``work`` and ``root`` are put beside it.
    """
    for folder in (upper, upper.parent / "work", upper.parent / "root"):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in (*layers, upper):
        if any(mark in str(folder) for mark in ":,\\"):
            raise HostsError(f"overlayfs cannot take the path {folder}: it contains one of ':,\\'")
    lower = ":".join(map(str, layers))
    return f"lowerdir={lower},upperdir={upper},workdir={upper.parent / 'work'}"


def remove_tree(folder: Path) -> None:
    """Remove a folder where it is there; never follows what is mounted in it, as nothing ever is."""
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def cached(name: str) -> Iterator[tuple[Path, bool]]:
    """The cached folder ``name`` and whether it is there; one builder of it at a time on this machine."""
    folder = cache_dir() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():
        yield folder, True
        return
    with (folder.parent / f".{name}.lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder, folder.is_dir()


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder ``name``, built by ``build(temporary_folder)`` where it is not there yet.

    A build that was killed leaves a temporary folder, which the next build of the same name removes.
    """
    with cached(name) as (folder, there):
        if there:
            return folder
        temporary = folder.parent / f".{name}.building"
        remove_tree(temporary)
        temporary.mkdir(parents=True)
        say(f"building {name} (once; kept in {folder.parent})")
        began = time.monotonic()
        try:
            build(temporary)
            temporary.rename(folder)
        except BaseException:
            remove_tree(temporary)
            raise
        say(f"built {name} in {time.monotonic() - began:.0f} s")
        return folder


def base(suite: str) -> Path:
    """Folder of a suite's bare system without Python, built where it is not in the cache."""
    if suite not in SUITES:
        raise HostsError(f"no recipe for suite {suite!r}: one of {', '.join(SUITES)}")

    def build(folder: Path) -> None:
        in_mount_namespace(
            'debootstrap --variant=minbase --force-check-gpg --keyring="$1" --include="$2" "$3" "$4" "$5"',
            KEYRING, ",".join(BASE_PACKAGES), suite, folder, mirror(),
            timeout=BUILD_TIMEOUT_S,
        )  # fmt: skip
        in_mount_namespace(CHROOT, folder, stdin=FINISH_BASE)
        folder.chmod(0o755)

    return build_once(f"{suite}-base-{key_of(suite, BASE_PACKAGES, RECIPE)}", build)


def layer(suite: str, packages: Sequence[str]) -> Path:
    """Folder with what installing ``packages`` adds to a suite's base, built where it is not in the cache."""
    below = base(suite)

    def build(folder: Path) -> None:
        work = folder.parent / f"{folder.name}.mount"
        remove_tree(work)
        options = overlay(work / "upper", [below])
        in_mount_namespace(
            'mount -t overlay overlay -o "$2" "$1"\n' + CHROOT,
            work / "root", options,
            stdin=ADD_PACKAGES.format(packages=" ".join(packages)), timeout=BUILD_TIMEOUT_S,
        )  # fmt: skip
        folder.rmdir()
        (work / "upper").rename(folder)
        remove_tree(work)

    return build_once(f"{suite}-layer-{key_of(below.name, packages, RECIPE)}", build)


def image(suite: str, python: str = "full") -> Image:
    """The image of a suite with one of ``PYTHONS``; slow the first time."""
    if python not in PYTHONS:
        raise HostsError(f"no recipe for python {python!r}: one of {', '.join(PYTHONS)}")
    packages = PYTHONS[python]
    return Image(suite, python, (layer(suite, packages), base(suite)) if packages else (base(suite),))
