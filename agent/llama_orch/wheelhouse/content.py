"""One folder of a wheelhouse: wheels in one archive, what pip is to install of them, and what they need of a host."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_orch.wheelhouse.files import locked, point, sha256
from llama_orch.wheelhouse.native import needed_versions
from llama_orch.wheelhouse.pip import say

# A playbook may still be pushing a folder that a newer one has replaced.
KEEP_REPLACED_S = 3600


@dataclass(frozen=True)
class Content:
    """What stands in the wheelhouse under a key: `fill` puts the wheels in a folder and answers facts of its own."""

    out: Path
    key: str
    label: str
    pointer_name: str
    fill: Callable[[Path], dict[str, Any]]

    def folder(self) -> Path:
        """Where the content stands once it is whole."""
        return self.out / f"{self.key}-{self.label}"

    def pointer(self) -> Path:
        """The link by which playbooks find the newest content."""
        return self.out / self.pointer_name

    def build(self) -> Path:
        """Make the folder where it is missing, point to it, and answer its path. Raises WheelhouseError."""
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out / ".lock", "another build of the wheelhouse"):
            folder = self.folder()
            if not (folder / "manifest.json").is_file():
                self._assemble(folder)
            if self.pointer().resolve() != folder.resolve():
                if self.pointer().exists():
                    # From now on it is replaced, whenever it was built.
                    os.utime(self.pointer())
                point(self.pointer(), folder.name)
            self._forget_replaced()
        return folder

    def _assemble(self, folder: Path) -> None:
        began = time.monotonic()
        say(f"{self.pointer_name}: building {folder.name}")
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.out) as temporary:
            whole = Path(temporary, "whole")
            whole.mkdir()
            facts = self.fill(whole)
            files = {path.name: sha256(path) for path in sorted(whole.glob("*.whl"))}
            glibc, glibcxx = needed_versions(whole.glob("*.whl"))
            (whole / "requirements.txt").write_text(requirements(files), encoding="utf-8")
            manifest = {
                "release": folder.name,
                "lock_hash": self.key,
                **facts,
                "glibc": glibc,
                "glibcxx": glibcxx,
                "bytes": sum(path.stat().st_size for path in whole.iterdir()),
                "installed_bytes": sum(_unpacked_bytes(whole / name) for name in files),
                "files": files,
            }
            write_tar(whole, [*files, "requirements.txt"])
            (whole / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            whole.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            whole.rename(folder)
        say(
            f"{self.pointer_name}: {len(files)} wheels, {manifest['bytes'] / 1e6:.0f} MB, "
            f"needs glibc {glibc}, {time.monotonic() - began:.0f} s"
        )

    def _forget_replaced(self) -> None:
        pointed = {link.readlink().name for link in self.out.iterdir() if link.is_symlink()}
        for folder in self.out.iterdir():
            if folder.is_symlink() or folder.name in pointed or not (folder / "manifest.json").is_file():
                continue
            if time.time() - folder.stat().st_mtime > KEEP_REPLACED_S:
                shutil.rmtree(folder)


def requirements(files: dict[str, str]) -> str:
    """What pip installs, by the sums of the wheels themselves; pip's own wheel only runs."""
    lines: list[str] = []
    for name, digest in files.items():
        distribution, version = name.split("-")[:2]
        if distribution != "pip":
            lines.append(f"{distribution.replace('_', '-')}=={version} --hash=sha256:{digest}\n")
    return "".join(lines)


def write_tar(folder: Path, names: list[str]) -> None:
    """One file to push instead of fifty; not compressed, since wheels are."""

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        info.mode = 0o644
        return info

    with tarfile.open(folder / "wheels.tar", "w") as archive:
        for name in sorted(names):
            archive.add(folder / name, name, filter=anonymous)


def _unpacked_bytes(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(info.file_size for info in archive.infolist())
