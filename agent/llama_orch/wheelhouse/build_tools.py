"""CMake and Ninja from their locked wheels: a machine needs a C++ compiler and nothing else."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_orch.wheelhouse.downloads import wheels_of
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import filled_once, locked
from llama_orch.wheelhouse.locks import Pin, Target, lock_path, pin_named, read_lock

WHEELS = ("cmake", "ninja")
# Their wheels run on any Python; pip wants to know one.
_TARGET = Target("3.11")


@dataclass(frozen=True)
class Tools:
    """The two programs."""

    cmake: Path
    ninja: Path


def pins(project: Path) -> list[Pin]:
    """What is locked of them. Raises WheelhouseError."""
    locked_pins = read_lock(lock_path(project, "build"))
    return [pin_named(locked_pins, name) for name in WHEELS]


def tools(project: Path, cache: Path) -> Tools:
    """The programs, fetched and unpacked where the cache has none. Raises WheelhouseError."""
    wanted = pins(project)
    key = hashlib.sha256("\n".join(pin.requirement() for pin in wanted).encode()).hexdigest()[:16]
    folder = cache / "tools" / key
    with locked(folder.with_name(folder.name + ".lock"), "another download of the build tools"):
        filled_once(folder, lambda into: unpack(wheels_of(wanted, _TARGET, cache, "CMake and Ninja"), into))
    return find(folder)


def unpack(wheels: Sequence[Path], folder: Path) -> None:
    """Unpack the wheels of CMake and Ninja."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def find(folder: Path) -> Tools:
    """The programs in a folder of `unpack`. Raises WheelhouseError."""
    programs: list[Path] = []
    for pattern in ("cmake/data/bin/cmake", "ninja-*.data/scripts/ninja"):
        found = next(folder.glob(pattern), None)
        if found is None:
            raise WheelhouseError(f"there is no {pattern} in the locked wheels of CMake and Ninja; run `make lock`")
        found.chmod(0o755)
        programs.append(found)
    return Tools(*programs)
