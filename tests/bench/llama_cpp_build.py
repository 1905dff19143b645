"""Builds llama.cpp's own server from the sources inside llama-cpp-python's sdist, to measure against.

The binding's wheel and these programs are then the same engine with the same options: one library per processor
generation, chosen at load, and no OpenMP. They are for measuring only and are never shipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import locked
from llama_orch.wheelhouse.llama import CMAKE_ARGS, NAME, build_key, default_cache
from llama_orch.wheelhouse.locks import Pin, pin_named, read_lock
from llama_orch.wheelhouse.pip import run_pip, say

ROOT = Path(__file__).parents[2]
TARGETS = ("llama-server", "llama-batched-bench")
OWN_ARGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    # So that the folder works wherever it is moved to.
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    # It would be downloaded.
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
BUILD_SECONDS = 2 * 3600.0


def bench_cache() -> Path:
    """Where everything lies that only the benchmark needs."""
    return default_cache() / "bench"


def pinned() -> Pin:
    """The version of llama-cpp-python that hives run."""
    return pin_named(read_lock(ROOT / "agent" / "requirements" / "hive.txt"), NAME)


def llama_cpp_programs(cache: Path) -> Path:
    """The folder with the built programs; builds them where the cache has none. Raises WheelhouseError."""
    pin = pinned()
    parts = (build_key(pin), *OWN_ARGS, *TARGETS)
    folder = cache / f"llama.cpp-{pin.version}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"
    with locked(folder.with_name(folder.name + ".lock"), "another build of llama.cpp"):
        if not folder.is_dir():
            _build(pin, folder)
    return folder


def _build(pin: Pin, folder: Path) -> None:
    say(f"building {' and '.join(TARGETS)} from {NAME} {pin.version}; some 20 minutes of CPU time, once per machine")
    began, used = time.monotonic(), _cpu_of_children()
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        place = Path(temporary)
        source = _sources(pin, place)
        tools = _cmake(place)
        build = place / "build"
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=tools["PATH"]) else []
        _run(["cmake", "-S", str(source), "-B", str(build), *generator, *CMAKE_ARGS, *OWN_ARGS], tools)
        jobs = str(os.cpu_count() or 1)
        _run(["cmake", "--build", str(build), "--parallel", jobs, "--target", *TARGETS], tools)
        built = build / "bin"
        if missing := [name for name in TARGETS if not (built / name).is_file()]:
            raise WheelhouseError(f"llama.cpp's build made no {' and no '.join(missing)}")
        built.rename(folder)
    wall, cpu = time.monotonic() - began, _cpu_of_children() - used
    say(f"built in {wall:.0f} s ({cpu:.0f} s of CPU time), kept in {folder}")


def _sources(pin: Pin, place: Path) -> Path:
    requirements = place / "requirements.txt"
    requirements.write_text(pin.requirement() + "\n", encoding="utf-8")
    run_pip(
        [
            "download",
            "--no-deps",
            f"--no-binary={NAME}",
            "--require-hashes",
            f"--dest={place}",
            f"--requirement={requirements}",
        ]
    )
    archive = next(place.glob("llama_cpp_python-*.tar.gz"), None)
    if archive is None:
        raise WheelhouseError(f"pip downloaded no sources of {NAME} {pin.version}")
    with tarfile.open(archive) as packed:
        packed.extractall(place, filter="data")
    archive.unlink()
    return place / f"llama_cpp_python-{pin.version}" / "vendor" / "llama.cpp"


def _cmake(place: Path) -> dict[str, str]:
    """An environment with cmake in its PATH: this machine's, or else one from the package index."""
    environment = dict(os.environ)
    environment.setdefault("PATH", os.defpath)
    if shutil.which("cmake", path=environment["PATH"]) is None:
        tools = place / "tools"
        run_pip(["install", f"--target={tools}", "cmake", "ninja"])
        environment["PATH"] = f"{tools / 'bin'}{os.pathsep}{environment['PATH']}"
        environment["PYTHONPATH"] = str(tools)
    return environment


def _run(command: list[str], environment: dict[str, str]) -> None:
    # A compiler's children outlive it when it alone is killed, so the whole group ends together.
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=BUILD_SECONDS)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait(10)
        raise
    if process.returncode:
        tail = "\n".join(output.splitlines()[-25:])
        raise WheelhouseError(f"{' '.join(command[:2])} failed with exit status {process.returncode}:\n{tail}")


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(llama_cpp_programs(bench_cache()))  # noqa: T201
