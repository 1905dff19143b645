"""Builds the engine: llama.cpp with its binding, as one wheel for every Python that runs on every x86-64 processor.

Upstream publishes the sources only, and builds them for the processor at hand: such a wheel can die of an illegal
instruction on another machine. Here each generation of processors gets a library of its own, chosen when the engine is
loaded. llama.cpp is built by itself and not through the binding's build, which would compile what is never loaded.

One tree serves all: a machine that only runs itself compiles one of these libraries, and a wheelhouse adds the others.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llama_orch.wheelhouse import build_tools, corrections, sources
from llama_orch.wheelhouse.compiler import compiler_version, need_compiler, run, run_ninja
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import filled_once, hash_of_tree, locked
from llama_orch.wheelhouse.locks import Pin
from llama_orch.wheelhouse.pip import say
from llama_orch.wheelhouse.processors import GENERATIONS, Generation
from llama_orch.wheelhouse.wheel_file import LINUX_TAG, Wheel

CPP = Path(__file__).parent / "cpp"
# In the wheel, below site-packages; add-ons such as CUDA's lie beside.
LIBRARIES = "llama_cpp/lib"
PARAMS_FILE = f"{LIBRARIES}/params.json"
# A host may have an older libstdc++ than the machine that builds. What is linked in stays inside: shown to others, it
# would be mixed up with a libstdc++ that some Python package loads, and could not be left out where nothing uses it.
LINK_FLAGS = "-static-libstdc++ -Wl,--exclude-libs,libstdc++.a -Wl,--gc-sections"
COMPILE_ARGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_BACKEND_DL=ON",
    # No OpenMP: a bare host has no libgomp, and ggml has threads of its own.
    "-DGGML_OPENMP=OFF",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    f"-DCMAKE_SHARED_LINKER_FLAGS={LINK_FLAGS}",
)
WITHOUT_PROGRAMS = (
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
ENGINE_ARGS = (
    *COMPILE_ARGS,
    *WITHOUT_PROGRAMS,
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DLLAMA_ORCH_COMPILE_SOONER=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    f"-DCMAKE_MODULE_LINKER_FLAGS={LINK_FLAGS}",
)
# libggml.so.0 and not also libggml.so: libllama.so is linked to the one, and backends that are loaded into a second
# copy crash the process.
_SHARED = ("libggml.so.0", "libggml-base.so.0")


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


def guarded(work: Path) -> list[str]:
    """CMake's options that give every file of C and C++ the guard of `cpp/amx_guard.h`, and llama.cpp our hook.

    Both are copied beside the build: were they named where they stand, another checkout would compile all anew.
    """

    def copy(folder: Path) -> None:
        for name in ("amx_guard.h", "hook.cmake", "arc4random.c"):
            shutil.copy(CPP / name, folder / name)

    ours = filled_once(work / "cpp", copy)
    flags = [f"-DCMAKE_{language}_FLAGS=-include {ours / 'amx_guard.h'}" for language in ("C", "CXX")]
    return [*flags, f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={ours / 'hook.cmake'}"]


def build_inputs(project: Path) -> list[str]:
    """What decides the bytes of all that is built from llama.cpp's sources on this machine. Raises WheelhouseError."""
    pin = sources.pinned(project)
    tools = [one.requirement() for one in build_tools.pins(project)]
    ours = hash_of_tree(CPP, [path for path in CPP.iterdir() if path.is_file()])
    corrected = repr(corrections.CORRECTIONS)
    return [pin.version, *pin.hashes, corrected, *tools, ours, compiler_version(), platform.machine(), libc()]


@dataclass(frozen=True)
class Engine:
    """The engine of one checkout, built on this machine with its compiler."""

    project: Path
    cache: Path

    @cached_property
    def pin(self) -> Pin:
        """The locked llama-cpp-python. Raises WheelhouseError."""
        return sources.pinned(self.project)

    @cached_property
    def key(self) -> str:
        """Names the build by all that decides its bytes. Raises WheelhouseError where there is no compiler."""
        need_compiler(sources.NAME)
        parts = [*ENGINE_ARGS, *build_inputs(self.project)]
        return f"{self.pin.version}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"

    def wheel(self, generations: Sequence[Generation] = GENERATIONS, *, then: str = "") -> Path:
        """The path of a wheel with at least these libraries; what the cache lacks is compiled.

        `then` is said while it compiles: what comes afterwards. Raises WheelhouseError.
        """
        with locked(self._folder().with_name(f"{self.key}.lock"), "another build of the engine"):
            if (whole := _in(self._wheels(GENERATIONS))) is not None:
                return whole
            return _in(self._wheels(generations)) or self._build(generations, then)

    def _folder(self) -> Path:
        return self.cache / "engine" / self.key

    def _wheels(self, generations: Sequence[Generation]) -> Path:
        return self._folder() / "-".join(one.name for one in generations)

    def _build(self, generations: Sequence[Generation], then: str) -> Path:
        began = time.monotonic()
        built = self._compiled(generations, then)
        params = self._params()
        source = sources.binding(self.pin, self.cache)
        wheel = Wheel(
            "llama-cpp-python",
            self.pin.version,
            # The source distribution's own, as it would stand in a wheel.
            metadata=(source / "PKG-INFO").read_bytes(),
            files=_python_files(source) | built,
            texts={PARAMS_FILE: params},
            licenses=[source / "LICENSE.md", source / "vendor" / "llama.cpp" / "LICENSE"],
        )

        def fill(folder: Path) -> None:
            wheel.write(folder, LINUX_TAG)

        found = _in(filled_once(self._wheels(generations), fill))
        if found is None:
            raise WheelhouseError(f"{self._wheels(generations)} holds no wheel; remove it and try again")
        say(f"built the engine in {time.monotonic() - began:.0f} s, kept in {self._folder()}")
        return found

    def _compiled(self, generations: Sequence[Generation], then: str) -> dict[str, Path]:
        """The libraries, by their names in the wheel."""
        build, tools = self._folder() / "build", build_tools.tools(self.project, self.cache)
        llama_cpp = sources.llama_cpp(self.pin, self.cache)
        names = ", ".join(one.name for one in generations)
        say(f"engine: llama.cpp is compiled for {names}; kept for the next time")
        command = [str(tools.cmake), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools.ninja}", "-S", str(llama_cpp)]
        run([*command, "-B", str(build), *ENGINE_ARGS, *guarded(self._folder())])
        targets = ["llama", *(one.target() for one in generations)]
        jobs = str(os.cpu_count() or 1)
        run_ninja([str(tools.ninja), "-j", jobs, "-C", str(build), *targets], "engine", then)
        names_in_wheel = ["libllama.so", *_SHARED, *(f"lib{one.target()}.so" for one in generations)]
        found = {f"{LIBRARIES}/{name}": build / "bin" / name for name in names_in_wheel}
        if missing := [path.name for path in found.values() if not path.is_file()]:
            raise WheelhouseError(f"the build in {build} made no {', '.join(missing)}; remove that folder, try again")
        return found

    def _params(self) -> str:
        """The sizes of llama.cpp's structures as JSON."""
        source = sources.llama_cpp(self.pin, self.cache)
        includes = [f"-I{source / folder}" for folder in ("include", "ggml/include")]
        with tempfile.TemporaryDirectory(prefix="llama-orch-params-") as folder:
            program = str(Path(folder, "params"))
            compiler = shutil.which("cc") or "gcc"
            run([compiler, *includes, str(CPP / "params.c"), "-o", program])
            return run([program])


def _python_files(source: Path) -> dict[str, Path]:
    package = source / "llama_cpp"
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix in {".py", ".typed"}]
    return {path.relative_to(source).as_posix(): path for path in sorted(files)}


def _in(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("llama_cpp_python-*.whl"))), None)
