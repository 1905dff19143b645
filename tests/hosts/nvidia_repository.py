"""NVIDIA's package repository as far as the driver role uses it: signed, flat, with several branches.

The packages have NVIDIA's names and versions, depend on each other in the ways of a driver, and have nothing in them:
what is tested is which of them come, and from where.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .debs import write_index

# With what each needs and bears: a library of its own version, one kind of kernel modules. The Fabric Manager stands
# for what somebody has installed that bears no driver of ours.
PACKAGES = {
    "libnvidia-ml1": "",
    "nvidia-driver-cuda": "Depends: libnvidia-ml1 (= {version})\n",
    "nvidia-fabricmanager": "Conflicts: nvidia-modprobe\n",
    "nvidia-kernel-dkms": "Conflicts: nvidia-kernel-open-dkms\n",
    "nvidia-kernel-open-dkms": "Conflicts: nvidia-kernel-dkms\n",
    "nvidia-modprobe": "Depends: kmod\n",
    "nvidia-persistenced": "",
}


class NvidiaRepository:
    """A folder with repositories and the key that signs them; made once, then only read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._home = tempfile.TemporaryDirectory(prefix="gnupg-")
        self._gpg("--quick-generate-key", "--passphrase", "", "tests <tests@example.com>", "rsa3072", "sign", "never")
        listed = self._gpg("--list-keys", "--with-colons").splitlines()
        self.fingerprint = next(line.split(":")[9] for line in listed if line.startswith("fpr:"))

    def add(self, distribution: str, key: str, versions: Sequence[str]) -> None:
        """A repository such as ``debian12/x86_64``, its public key in the file ``key``. One that was there is gone."""
        folder = self.folder / distribution / "x86_64"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for version in versions:
            for package in PACKAGES:
                _package(folder, package, version)
        write_index(folder)
        index = (folder / "Packages").read_bytes()
        release = f"Origin: NVIDIA\nSHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} Packages\n"
        (folder / "Release").write_text(release)
        self._gpg("--clearsign", "--output", str(folder / "InRelease"), str(folder / "Release"))
        (folder / key).write_text(self._gpg("--export", "--armor"))

    def _gpg(self, *words: str) -> str:
        command = ["gpg", "--homedir", self._home.name, "--batch", "--quiet", "--pinentry-mode", "loopback", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def close(self) -> None:
        """Forget the key."""
        subprocess.run(
            ["gpgconf", "--homedir", self._home.name, "--kill", "all"], capture_output=True, timeout=30, check=False
        )
        self._home.cleanup()


def _package(folder: Path, name: str, version: str) -> None:
    with tempfile.TemporaryDirectory() as source:
        control = Path(source, "DEBIAN", "control")
        control.parent.mkdir()
        control.write_text(
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: tests <tests@example.com>\n"
            f"{PACKAGES[name].format(version=version)}"
            "Description: has the name of a package of NVIDIA's\n"
        )
        subprocess.run(
            ["dpkg-deb", "--build", source, str(folder / f"{name}_{version}_amd64.deb")],
            capture_output=True, timeout=60, check=True,
        )  # fmt: skip
