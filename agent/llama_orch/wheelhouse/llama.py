"""Builds llama-cpp-python once, so that the one wheel runs on every x86-64 machine and at its full speed.

Upstream publishes the sources only, and builds them for the processor at hand: such a wheel can die of an
illegal instruction on another machine. Here each processor generation gets a backend of its own, chosen when
the library is loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import time
from pathlib import Path

from llama_orch.wheelhouse.compiler import need_compiler
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import locked
from llama_orch.wheelhouse.locks import Pin, lock_path, pin_named, read_lock
from llama_orch.wheelhouse.pip import exactly, run_pip, say

NAME = "llama-cpp-python"
# No OpenMP: a bare host has no libgomp, and ggml has threads of its own.
CMAKE_ARGS = (
    "-DGGML_NATIVE=OFF",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DGGML_OPENMP=OFF",
    "-DLLAVA_BUILD=OFF",
)


def default_cache() -> Path:
    """Where built and downloaded wheels are kept: `$XDG_CACHE_HOME/llama-orch`, by default `~/.cache/llama-orch`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base if base else Path.home() / ".cache") / "llama-orch"


def libc() -> str:
    """The C library that is linked to here, such as "glibc 2.36"."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""


def build_key(pin: Pin) -> str:
    """Names a build by all that decides its bytes: sources, options, architecture and the C library linked to."""
    parts = [pin.version, *pin.hashes, *CMAKE_ARGS, platform.machine(), libc()]
    return f"{pin.version}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def llama_wheel(project: Path, cache: Path) -> Path:
    """The path of the built wheel; builds it where the cache has none. Raises WheelhouseError."""
    pin = pin_named(read_lock(lock_path(project, "hive")), NAME)
    folder = cache / "wheels" / build_key(pin)
    with locked(folder.with_name(folder.name + ".lock"), f"another build of {NAME}"):
        return _cached(folder) or _build(pin, folder)


def _cached(folder: Path) -> Path | None:
    wheels = sorted(folder.glob("llama_cpp_python-*.whl"))
    return wheels[0] if wheels else None


def _build(pin: Pin, folder: Path) -> Path:
    need_compiler(NAME)
    say(f"building {NAME} {pin.version} for every x86-64 processor; about 21 minutes of CPU time, once per machine")
    began = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary, exactly([pin]) as this:
        built = Path(temporary, "built")
        run_pip(
            [
                "wheel",
                "--no-deps",
                f"--no-binary={NAME}",
                # pip keeps wheels that it built, whatever CMAKE_ARGS they were built with.
                "--no-cache-dir",
                f"--wheel-dir={built}",
                *this,
            ],
            # CMAKE_BUILD_PARALLEL_LEVEL: scikit-build-core leaves it to ninja, which takes all cores and 2 more.
            {"CMAKE_ARGS": " ".join(CMAKE_ARGS), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)},
        )
        wheel = _cached(built)
        if wheel is None:
            raise WheelhouseError(f"pip built no wheel of {NAME} {pin.version}")
        name = wheel.name
        built.rename(folder)
    say(f"built {NAME} in {time.monotonic() - began:.0f} s, kept in {folder}")
    return folder / name
