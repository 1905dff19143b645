"""Reads the hash-pinned lock files and picks what one target machine needs of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from llama_orch.wheelhouse.errors import WheelhouseError

_PINNED = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?==(?P<version>[^\s;]+)\s*(?:;\s*(?P<marker>.+))?$")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")


@dataclass(frozen=True)
class Pin:
    """One locked distribution: its name, version, marker ("" = always) and the sha256 sums of its files."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def requirement(self) -> str:
        """The line that makes pip fetch exactly this."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash={digest}" for digest in self.hashes)])


@dataclass(frozen=True)
class Target:
    """The machine that the wheels are for: its Python ("3.11") and its architecture ("x86_64")."""

    python: str
    arch: str = "x86_64"

    def label(self) -> str:
        """How folder names show the target, e.g. `py3.11-x86_64`."""
        return f"py{self.python}-{self.arch}"

    def environment(self) -> dict[str, str]:
        """The values that environment markers are judged by.

        pip judges the markers of a requirements file by the Python that runs it, not by the one it downloads
        for, so this has to be done here.
        """
        full = f"{self.python}.2"
        return {
            "implementation_name": "cpython",
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": self.arch,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": full,
            "python_version": self.python,
            "sys_platform": "linux",
            "extra": "",
        }


def lock_path(project: Path, name: str) -> Path:
    """The lock file of a part ("hive", "queen"), of CUDA ("cuda13", "cuda12") or of pip itself ("pip")."""
    return project / "agent" / "requirements" / f"{name}.txt"


def read_lock(path: Path) -> list[Pin]:
    """All pins of a lock file. Raises WheelhouseError for a missing file and for a line without version or hash."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise WheelhouseError(f"the lock file {path} is missing; make it with `make lock`") from None
    pins: list[Pin] = []
    for line in (text_line.strip() for text_line in text.replace("\\\n", " ").splitlines()):
        if not line or line.startswith("#"):
            continue
        hashes = tuple(sorted(_HASH.findall(line)))
        found = _PINNED.match(_HASH.sub("", line).strip())
        if not found or not hashes:
            raise WheelhouseError(f"{path}: {line[:80]!r} is not a pinned requirement with hashes; run `make lock`")
        pins.append(Pin(found["name"], found["version"], (found["marker"] or "").strip(), hashes))
    return pins


def pins_for(pins: list[Pin], target: Target) -> list[Pin]:
    """Those of the pins whose marker holds on the target."""
    environment = target.environment()
    # Every pip carries it; imported late, so that a Python without pip gets to say so in words.
    marker: Callable[[str], Any] = import_module("pip._vendor.packaging.markers").Marker
    return [pin for pin in pins if not pin.marker or marker(pin.marker).evaluate(environment)]


def pin_named(pins: list[Pin], name: str) -> Pin:
    """The one pin of that name. Raises WheelhouseError when there is none."""
    for pin in pins:
        if pin.name.lower().replace("_", "-") == name:
            return pin
    raise WheelhouseError(f"{name} is not in the lock file; run `make lock`")
