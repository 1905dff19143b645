"""A folder of Debian packages for hosts that have no way out, and the server that hands it to them.

``python -m tests.hosts.debs ADDRESS PORT FOLDER`` is that server; ``Fleet`` starts it on its bridge.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from . import images

# What roles may install on a bare host. Each comes with everything that it depends on.
PACKAGES = (
    "acl",
    "ca-certificates",
    "curl",
    "iptables",
    "iputils-ping",
    "nftables",
    "openssh-client",
    "procps",
    "python3-apt",
    "rsync",
    "ufw",
)
# NVIDIA's driver as Debian has it, compute-only, with both kinds of kernel modules.
DRIVER_PACKAGES = (
    "libcuda1",
    "libnvidia-cfg1",
    "libnvidia-ml1",
    "nvidia-kernel-dkms",
    "nvidia-modprobe",
    "nvidia-open-kernel-dkms",
    "nvidia-persistenced",
    "nvidia-smi",
)

# Each package by itself: together they could exclude each other, and a host may install any of them.
DOWNLOAD = """
sed -i 's/ main$/ main contrib non-free non-free-firmware/' /etc/apt/sources.list
apt-get update -q
for package in {packages}; do
    apt-get install -q -y --no-install-recommends --download-only "$package"
done
"""


def folder(suite: str, packages: Sequence[str] = PACKAGES) -> Path:
    """An apt repository (flat: packages and their index) of ``packages`` with all dependencies, from the cache."""
    below = images.base(suite)
    wanted = sorted({*packages, *DRIVER_PACKAGES, *images.PYTHONS["full"], *images.PYTHONS["minimal"]})
    kernel = platform.release()

    def build(target: Path) -> None:
        work = target.parent / f"{target.name}.mount"
        images.remove_tree(work)
        options = images.overlay(work / "upper", [below])
        images.in_mount_namespace(
            'mount -t overlay overlay -o "$2" "$1"\n' + images.CHROOT,
            work / "root", options,
            stdin=DOWNLOAD.format(packages=" ".join(wanted)), timeout=images.BUILD_TIMEOUT_S,
        )  # fmt: skip
        for package in (work / "upper" / "var/cache/apt/archives").glob("*.deb"):
            package.rename(target / package.name.replace("%3a", "-"))
        images.remove_tree(work)
        write_headers(target, kernel)
        write_index(target)

    return images.build_once(f"{suite}-packages-{images.key_of(below.name, wanted, kernel)}", build)


def write_headers(target: Path, kernel: str) -> None:
    """Make a package named after the headers of this machine's kernel, which the hosts run and no distribution has.

    There is nothing in it, so that dkms builds nothing for a kernel that could load nothing either.
    """
    with tempfile.TemporaryDirectory() as folder:
        control = Path(folder, "DEBIAN", "control")
        control.parent.mkdir()
        name = f"linux-headers-{kernel}"
        control.write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: tests <tests@example.com>\n"
            "Description: stands for the headers of a kernel of the distribution\n"
        )
        subprocess.run(
            ["dpkg-deb", "--build", folder, str(target / f"{name}_1_all.deb")],
            capture_output=True,
            timeout=60,
            check=True,
        )


def write_index(target: Path) -> None:
    """Write ``Packages`` for every package file in the folder."""
    stanzas = []
    for package in sorted(target.glob("*.deb")):
        control = subprocess.run(
            ["dpkg-deb", "--field", str(package)], capture_output=True, text=True, timeout=60, check=True
        ).stdout.rstrip("\n")
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        stanzas.append(f"{control}\nFilename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {digest}\n")
    (target / "Packages").write_text("\n".join(stanzas))


def sources_list(base_url: str, suite: str) -> str:
    """The one line of a host's sources.list. The index is unsigned: these machines are thrown away."""
    return f"deb [trusted=yes] {base_url}/{suite} ./\n"


def serve(address: str, port: int, target: Path) -> None:
    """Serve a folder by HTTP for ever; port 0 takes a free one. The first line of stdout is the port."""
    server = ThreadingHTTPServer((address, port), partial(SimpleHTTPRequestHandler, directory=str(target)))
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
