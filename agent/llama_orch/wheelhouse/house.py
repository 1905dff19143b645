"""Puts together one wheelhouse: a folder with all wheels that one part of llama-orch needs on one target."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from llama_orch.wheelhouse import llama
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import hash_of_tree, locked, point, sha256
from llama_orch.wheelhouse.locks import Pin, Target, pins_for, read_lock
from llama_orch.wheelhouse.native import needed_versions
from llama_orch.wheelhouse.pip import download, run_pip, say

PARTS = ("hive", "queen")
# Debian 12, Debian 13, and Ubuntu 24.04 with RHEL 9 (AppStream) and RHEL 10.
DEFAULT_PYTHONS = ("3.11", "3.13", "3.12")
# Raise it when the content of a wheelhouse changes though nothing that it is made from did.
FORMAT = "1"
# A playbook may still be pushing a folder that a newer one has replaced.
KEEP_REPLACED_S = 3600


@dataclass(frozen=True)
class Project:
    """The checkout that is built from."""

    root: Path

    def lock(self, name: str) -> Path:
        """The lock file of a part ("hive", "queen") or of pip itself ("pip")."""
        return self.root / "agent" / "requirements" / f"{name}.txt"

    def sources(self) -> list[Path]:
        """The files that the llama_orch wheel is made of. Raises WheelhouseError outside a checkout."""
        package = self.root / "agent" / "llama_orch"
        if not (self.root / "pyproject.toml").is_file() or not package.is_dir():
            raise WheelhouseError(f"{self.root} is not a checkout of llama-orch; give its path with --project")
        files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        return [self.root / "pyproject.toml", *files]


@dataclass(frozen=True)
class House:
    """One wheelhouse to be: which part, for which target, from which checkout, in which folder."""

    project: Project
    part: str
    target: Target
    out: Path
    cache: Path

    def key(self) -> str:
        """Names the content by all it is made from, so that the same sources give the same release anywhere."""
        pins = read_lock(self.project.lock(self.part))
        parts = [FORMAT, self.part, self.target.label(), self.project.lock(self.part).read_text(encoding="utf-8")]
        parts += [self.project.lock("pip").read_text(encoding="utf-8")]
        parts += [hash_of_tree(self.project.root, self.project.sources())]
        if self.part == "hive":
            parts.append(" ".join(llama.CMAKE_ARGS) + next(p.version for p in pins if p.name == llama.NAME))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def folder(self) -> Path:
        """Where the content stands once it is whole."""
        return self.out / f"{self.key()}-{self.target.label()}"

    def pointer(self) -> Path:
        """The link by which playbooks find the newest content."""
        return self.out / f"{self.part}-{self.target.label()}"

    def build(self) -> Path:
        """Make the folder where it is missing, point to it, and answer its path. Raises WheelhouseError."""
        self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out / ".lock", "another build of the wheelhouse"):
            folder = self.folder()
            if not (folder / "manifest.json").is_file():
                self._assemble(folder)
            if not self.pointer().is_symlink() or self.pointer().readlink() != Path(folder.name):
                point(self.pointer(), folder.name)
            self._forget_replaced()
        return folder

    def _assemble(self, folder: Path) -> None:
        began = time.monotonic()
        say(f"{self.part} {self.target.label()}: building {folder.name}")
        wheels = [*self._locked_wheels(), *self._pip_wheel()]
        if self.part == "hive":
            wheels.append(llama.llama_wheel(self.project.root, self.cache))
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.out) as temporary:
            whole = Path(temporary, "whole")
            whole.mkdir()
            for wheel in wheels:
                shutil.copy2(wheel, whole / wheel.name)
            self._own_wheel(whole)
            files = {path.name: sha256(path) for path in sorted(whole.glob("*.whl"))}
            glibc, glibcxx = needed_versions(whole.glob("*.whl"))
            (whole / "requirements.txt").write_text(_requirements(files), encoding="utf-8")
            manifest = {
                "release": folder.name,
                "lock_hash": folder.name.split("-", 1)[0],
                "part": self.part,
                "python": self.target.python,
                "arch": self.target.arch,
                "glibc": glibc,
                "glibcxx": glibcxx,
                "bytes": sum(path.stat().st_size for path in whole.iterdir()),
                "pip": next(name for name in files if name.startswith("pip-")),
                "files": files,
            }
            _write_tar(whole, [*files, "requirements.txt"])
            (whole / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            whole.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            whole.rename(folder)
        megabytes = manifest["bytes"] / 1e6
        say(
            f"{self.part} {self.target.label()}: {len(files)} wheels, {megabytes:.0f} MB, "
            f"needs glibc {glibc}, {time.monotonic() - began:.0f} s"
        )

    def _locked_wheels(self) -> list[Path]:
        pins = pins_for(read_lock(self.project.lock(self.part)), self.target)
        return self._downloaded([pin for pin in pins if pin.name != llama.NAME], f"{len(pins)} locked wheels")

    def _pip_wheel(self) -> list[Path]:
        return self._downloaded(read_lock(self.project.lock("pip")), "pip's own wheel")

    def _downloaded(self, pins: list[Pin], what: str) -> list[Path]:
        """The wheels of these pins, from the cache where they were fetched before: sources change more often."""
        text = "\n".join(pin.requirement() for pin in pins)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = self.cache / "downloads" / f"{key}-{self.target.label()}"
        with locked(folder.with_name(folder.name + ".lock"), "another download of the same wheels"):
            if not folder.is_dir():
                say(f"{self.part} {self.target.label()}: fetching {what}")
                with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
                    fetched = Path(temporary, "fetched")
                    download(pins, self.target, fetched)
                    fetched.rename(folder)
        wheels = sorted(folder.glob("*.whl"))
        if len(wheels) != len(pins):
            raise WheelhouseError(f"{folder} holds {len(wheels)} wheels, not {len(pins)}; remove it and try again")
        return wheels

    def _own_wheel(self, into: Path) -> None:
        """Build llama_orch from a clean copy of its sources, with times that do not depend on now."""
        root = self.project.root
        with tempfile.TemporaryDirectory(prefix="llama-orch-source-") as temporary:
            copy = Path(temporary, "source")
            extra = [root / name for name in ("README.md", "LICENSE") if (root / name).is_file()]
            for path in [*self.project.sources(), *extra]:
                destination = copy / path.relative_to(root)
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, destination)
            # The checkout's own environment holds the locked setuptools; elsewhere pip fetches one.
            isolation = ["--no-build-isolation"] if find_spec("setuptools") else []
            run_pip(
                ["wheel", "--no-deps", *isolation, f"--wheel-dir={into}", str(copy)],
                {"SOURCE_DATE_EPOCH": "315532800"},
            )

    def _forget_replaced(self) -> None:
        pointed = {link.readlink().name for link in self.out.iterdir() if link.is_symlink()}
        for folder in self.out.iterdir():
            if folder.is_symlink() or folder.name in pointed or not (folder / "manifest.json").is_file():
                continue
            if time.time() - folder.stat().st_mtime > KEEP_REPLACED_S:
                shutil.rmtree(folder)


def _requirements(files: dict[str, str]) -> str:
    lines: list[str] = []
    for name, digest in files.items():
        distribution, version = name.split("-")[:2]
        if distribution != "pip":
            lines.append(f"{distribution.replace('_', '-')}=={version} --hash=sha256:{digest}\n")
    return "".join(lines)


def _write_tar(folder: Path, names: list[str]) -> None:
    """One file to push instead of fifty; not compressed, since wheels are."""

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        info.mode = 0o644
        return info

    with tarfile.open(folder / "wheels.tar", "w") as archive:
        for name in sorted(names):
            archive.add(folder / name, name, filter=anonymous)
