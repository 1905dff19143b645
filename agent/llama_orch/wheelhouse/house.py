"""Puts together one wheelhouse: a folder with all wheels that one part of llama-orch needs on one target."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama_orch.wheelhouse.content import Content
from llama_orch.wheelhouse.downloads import wheels_of
from llama_orch.wheelhouse.engine import Engine
from llama_orch.wheelhouse.engine_lock import LockedEngine, engine_for
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import hash_of_tree
from llama_orch.wheelhouse.locks import Target, lock_path, pins_for, read_lock
from llama_orch.wheelhouse.pip import run_pip
from llama_orch.wheelhouse.sources import NAME as ENGINE

PARTS = ("hive", "queen")
# Debian 12, Debian 13, and Ubuntu 24.04 with RHEL 9 (AppStream) and RHEL 10.
DEFAULT_PYTHONS = ("3.11", "3.13", "3.12")
# Raise it when the content of a wheelhouse changes though nothing that it is made from did.
FORMAT = "1"


@dataclass(frozen=True)
class Project:
    """The checkout that is built from."""

    root: Path

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
        """Names the content by all it is made from: the same sources and compiler give the same release anywhere."""
        sources = hash_of_tree(self.project.root, self.project.sources())
        lock, pip = (lock_path(self.project.root, name) for name in (self.part, "pip"))
        parts = [FORMAT, self.part, self.target.label(), lock.read_text(encoding="utf-8")]
        parts += [pip.read_text(encoding="utf-8")]
        parts += [sources]
        if self.part == "hive":
            parts.append(self._engine.key)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def content(self) -> Content:
        """The folder to be, and the link to it."""
        label = self.target.label()
        return Content(self.out, self.key(), label, f"{self.part}-{label}", self._fill)

    @cached_property
    def _engine(self) -> Engine | LockedEngine:
        return engine_for(self.project.root, self.cache)

    def _fill(self, folder: Path) -> dict[str, Any]:
        locked = read_lock(lock_path(self.project.root, self.part))
        pins = [pin for pin in pins_for(locked, self.target) if pin.name != ENGINE]
        what = f"{len(pins)} locked wheels of the {self.part} for Python {self.target.python}"
        wheels = wheels_of(pins, self.target, self.cache, what)
        pip = wheels_of(read_lock(lock_path(self.project.root, "pip")), self.target, self.cache, "pip's own wheel")
        if self.part == "hive":
            wheels.append(self._engine.wheel())
        for wheel in [*wheels, *pip]:
            shutil.copy2(wheel, folder / wheel.name)
        self._own_wheel(folder)
        return {"part": self.part, "python": self.target.python, "arch": self.target.arch, "pip": pip[0].name}

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
