"""Builds llama.cpp's own server from the sources inside llama-cpp-python's sdist, to measure against.

The engine's wheel and these programs are then built alike: the library of this machine's processor, the same options
and the same guard. They are for measuring only and are never shipped.
"""

from __future__ import annotations

import hashlib
import os
import resource
import tempfile
import time
from pathlib import Path

from llama_orch.wheelhouse import build_tools, engine, sources
from llama_orch.wheelhouse.compiler import run, run_ninja
from llama_orch.wheelhouse.engine import default_cache
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import locked
from llama_orch.wheelhouse.locks import Pin
from llama_orch.wheelhouse.pip import say
from llama_orch.wheelhouse.processors import features_here, runnable

ROOT = Path(__file__).parents[2]
TARGETS = ("llama-server", "llama-batched-bench")
ARGS = (
    *engine.COMPILE_ARGS,
    "-DGGML_CPU_ALL_VARIANTS=ON",
    # So that the folder works wherever it is moved to.
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    # It would be downloaded.
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


def bench_cache() -> Path:
    """Where everything lies that only the benchmark needs."""
    return default_cache() / "bench"


def pinned() -> Pin:
    """The version of llama-cpp-python that hives run."""
    return sources.pinned(ROOT)


def llama_cpp_programs(cache: Path) -> Path:
    """The folder with the built programs; builds them where the cache has none. Raises WheelhouseError."""
    version = pinned().version
    generation = runnable(features_here())[0]
    parts = (*engine.build_inputs(ROOT), *ARGS, *TARGETS, generation.name)
    folder = cache / f"llama.cpp-{version}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"
    with locked(folder.with_name(folder.name + ".lock"), "another build of llama.cpp"):
        if not folder.is_dir():
            _build(folder, [*TARGETS, generation.target()])
    return folder


def _build(folder: Path, targets: list[str]) -> None:
    began, used = time.monotonic(), _cpu_of_children()
    tools = build_tools.tools(ROOT, default_cache())
    source = sources.llama_cpp(pinned(), default_cache())
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        build = Path(temporary, "build")
        ninja = f"-DCMAKE_MAKE_PROGRAM={tools.ninja}"
        guard = engine.guarded(Path(temporary))
        run([str(tools.cmake), "-G", "Ninja", ninja, "-S", str(source), "-B", str(build), *ARGS, *guard])
        command = [str(tools.ninja), "-j", str(os.cpu_count() or 1), "-C", str(build), *targets]
        run_ninja(command, "llama.cpp's programs")
        built = build / "bin"
        if missing := [name for name in TARGETS if not (built / name).is_file()]:
            raise WheelhouseError(f"llama.cpp's build made no {' and no '.join(missing)}")
        built.rename(folder)
    wall, cpu = time.monotonic() - began, _cpu_of_children() - used
    say(f"built in {wall:.0f} s ({cpu:.0f} s of CPU time), kept in {folder}")


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(llama_cpp_programs(bench_cache()))  # noqa: T201
