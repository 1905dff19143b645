"""The sources of the locked llama-cpp-python, which hold all of llama.cpp."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from pathlib import Path

from llama_orch.wheelhouse import corrections
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import filled_once, locked
from llama_orch.wheelhouse.locks import Pin, lock_path, pin_named, read_lock
from llama_orch.wheelhouse.pip import exactly, run_pip

NAME = "llama-cpp-python"
LLAMA_CPP = Path("vendor", "llama.cpp")


def pinned(project: Path) -> Pin:
    """The llama-cpp-python that is locked. Raises WheelhouseError."""
    return pin_named(read_lock(lock_path(project, "hive")), NAME)


def binding(pin: Pin, cache: Path) -> Path:
    """The unpacked and corrected sources, fetched where the cache has none. Raises WheelhouseError."""
    key = hashlib.sha256(f"{pin.requirement()}\n{corrections.CORRECTIONS!r}".encode()).hexdigest()[:16]
    folder = cache / "sources" / f"{NAME}-{pin.version}-{key}"

    def fetch(into: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="llama-orch-source-") as temporary, exactly([pin]) as this:
            options = ["--no-deps", f"--no-binary={NAME}", f"--dest={temporary}"]
            run_pip(["download", *options, *this], fetching=f"fetching the sources of {NAME} {pin.version}")
            archive = next(Path(temporary).glob("*.tar.gz"), None)
            if archive is None:
                raise WheelhouseError(f"pip downloaded no sources of {NAME} {pin.version}")
            with tarfile.open(archive) as packed:
                packed.extractall(into, filter="data")
        corrections.apply(next(into.iterdir()) / LLAMA_CPP)

    with locked(folder.with_name(folder.name + ".lock"), "another download of the same sources"):
        filled_once(folder, fetch)
    return next(folder.iterdir())


def llama_cpp(pin: Pin, cache: Path) -> Path:
    """The folder of llama.cpp in them. Raises WheelhouseError."""
    return binding(pin, cache) / LLAMA_CPP
