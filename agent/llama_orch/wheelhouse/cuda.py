"""Builds llama.cpp's CUDA backend from the sources of the locked llama-cpp-python, as a wheel that adds it to that one.

The engine loads its backends at run time (GGML_BACKEND_DL), so the same wheel serves all hives and those with a GPU get
one library more. It lands beside the CPU libraries, in `<site-packages>/llama_cpp/lib`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from llama_orch.wheelhouse import architectures, build_tools, engine, sources, toolkit
from llama_orch.wheelhouse.compiler import need_compiler, run, run_ninja
from llama_orch.wheelhouse.cuda_runtime import RUNTIMES, Runtime
from llama_orch.wheelhouse.downloads import wheels_of
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import filled_once, locked
from llama_orch.wheelhouse.locks import Pin, Target, lock_path, pin_named, pins_for, read_lock
from llama_orch.wheelhouse.pip import say
from llama_orch.wheelhouse.wheel_file import Wheel, metadata

NAME = "llama-orch-cuda"
# The major version of CUDA whose compiler NVIDIA has as wheels.
FROM_WHEELS = 13
LIBRARY = "libggml-cuda.so"
# Raise it when what is built changes though nothing that it is made from did.
FORMAT = "1"
CMAKE_ARGS = (
    *engine.COMPILE_ARGS,
    *engine.WITHOUT_PROGRAMS,
    "-DGGML_CPU=OFF",
    "-DGGML_CUDA=ON",
    # A model that is split by layers or rows needs none.
    "-DGGML_CUDA_NCCL=OFF",
    "-DCMAKE_CUDA_RUNTIME_LIBRARY=Shared",
    # The driver's library must be named in the result, which CMake links as a module, though the stub is empty.
    f"-DCMAKE_MODULE_LINKER_FLAGS={engine.LINK_FLAGS} -Wl,--no-as-needed",
)
# Minutes of CPU time on a core of 2024; measured with one architecture, 50 together.
_BASE_MINUTES, _MINUTES_PER_ARCHITECTURE = 10, 40
# All wheels of it run on any Python; pip wants to know one.
_TARGET = Target("3.11")
_WHEELS = "llama_orch_cuda-*.whl"


@dataclass(frozen=True)
class Backend:
    """One build of the CUDA backend to be. `compiler` names all that compiles it, for the key."""

    project: Path
    cache: Path
    runtime: Runtime
    nvcc: Path | None
    compiler: str
    architectures: str

    def pins(self) -> list[Pin]:
        """What is locked for this CUDA."""
        return pins_for(read_lock(lock_path(self.project, self.runtime.lock())), _TARGET)

    def llama(self) -> Pin:
        """The llama-cpp-python that it is built from and that it fits."""
        return sources.pinned(self.project)

    def inputs(self) -> list[str]:
        """All that decides what is built. Raises WheelhouseError where this machine has no C++ compiler."""
        wheels = [pin_named(self.pins(), name).requirement() for name in self.runtime.wheels()]
        built_by = [*CMAKE_ARGS, self.compiler, self.architectures, *self.runtime.folders]
        return [FORMAT, *engine.build_inputs(self.project), *built_by, *wheels]

    def key(self) -> str:
        """Names the build in the cache; see `Engine.key`."""
        digest = hashlib.sha256(chr(0).join(self.inputs()).encode()).hexdigest()
        return f"cuda-{self.llama().version}-{digest[:16]}"

    def runtime_wheels(self) -> list[Path]:
        """NVIDIA's wheels that a hive installs. Raises WheelhouseError."""
        pins = [pin_named(self.pins(), name) for name in self.runtime.wheels()]
        return wheels_of(pins, _TARGET, self.cache, f"the CUDA {self.runtime.version(pins)} runtime")

    def told(self) -> str:
        """In words what it is and how long it takes. Raises WheelhouseError."""
        machine_code = sum(map(len, architectures.code_of(self.architectures)))
        minutes = _BASE_MINUTES + _MINUTES_PER_ARCHITECTURE * machine_code
        kept = any(self._folder().glob(_WHEELS))
        return f"{self.architectures} with CUDA {self.runtime.version(self.pins())}, " + (
            "compiled before" if kept else f"about {minutes} minutes of CPU time"
        )

    def wheel(self) -> Path:
        """The path of the built wheel; builds it where the cache has none. Raises WheelhouseError."""
        need_compiler(NAME)
        folder = self._folder()
        with locked(folder.with_name(folder.name + ".lock"), f"another build of {NAME}"):
            built = sorted(folder.glob(_WHEELS))
            return built[0] if built else self._build(folder)

    def _folder(self) -> Path:
        return self.cache / "wheels" / self.key()

    def _build(self, folder: Path) -> Path:
        say(
            f"building the CUDA backend of {sources.NAME} {self.llama().version} for {self.told()}, once per machine; "
            "a build that was stopped goes on where it was"
        )
        began = time.monotonic()
        # Kept until the build is whole: hours of work may be in it.
        work = self.cache / "cuda" / self.key()
        self._compile(work)
        library = next((work / "build").rglob(LIBRARY), None)
        if library is None or b"\0libcuda.so.1\0" not in library.read_bytes():
            raise WheelhouseError(
                f"the build in {work} made no {LIBRARY} that asks for the driver; remove that folder and try again"
            )
        folder.mkdir(parents=True, exist_ok=True)
        runtimes = [pin_named(self.pins(), name) for name in self.runtime.wheels()]
        needs = [f"{pin.name}=={pin.version}" for pin in (self.llama(), *runtimes)]
        version = f"{self.llama().version}+cu{self.runtime.version(runtimes)}"
        files = {f"{engine.LIBRARIES}/{LIBRARY}": library}
        wheel = Wheel(NAME, version, metadata(NAME, version, needs), files).write(folder)
        shutil.rmtree(work)
        say(f"built {wheel.name} in {time.monotonic() - began:.0f} s, kept in {folder}")
        return wheel

    def _compile(self, work: Path) -> None:
        tools = build_tools.tools(self.project, self.cache)
        compiler = [f"-DCMAKE_CUDA_COMPILER={self.nvcc}"]
        if self.nvcc is None:
            cuda = filled_once(work / "toolkit", self._fetch_toolkit)
            compiler = [f"-DCMAKE_CUDA_COMPILER={cuda / 'bin' / 'nvcc'}", f"-DCUDAToolkit_ROOT={cuda}"]
        # From <site-packages>/llama_cpp/lib, where the library lands.
        origin = ";".join(f"$ORIGIN/../../{folder}" for folder in self.runtime.folders)
        run(
            [
                str(tools.cmake),
                "-G",
                "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={tools.ninja}",
                "-S",
                str(sources.llama_cpp(self.llama(), self.cache)),
                "-B",
                str(work / "build"),
                *CMAKE_ARGS,
                *engine.guarded(work),
                f"-DCMAKE_CUDA_ARCHITECTURES={self.architectures}",
                *compiler,
                f"-DCMAKE_INSTALL_RPATH={origin}",
            ]
        )
        jobs = str(os.cpu_count() or 1)
        run_ninja([str(tools.ninja), "-j", jobs, "-C", str(work / "build"), "ggml-cuda"], "CUDA backend")

    def _fetch_toolkit(self, folder: Path) -> None:
        pins = [pin_named(self.pins(), name) for name in (*toolkit.COMPILER_WHEELS, *self.runtime.wheels())]
        toolkit.lay_out(wheels_of(pins, _TARGET, self.cache, "the CUDA compiler"), folder)


def backend(project: Path, cache: Path, nvcc: Path | None, wanted: str) -> Backend:
    """The build that these settings ask for: which nvcc (None: NVIDIA's wheels), for which architectures.

    Raises WheelhouseError where one of them cannot be used and where no locked runtime fits the compiler.
    """
    runtime, compiler = compiler_for(project, nvcc)
    architectures.check(wanted, runtime)
    return Backend(project, cache, runtime, None if nvcc is None else nvcc.resolve(), compiler, wanted)


def compiler_for(project: Path, nvcc: Path | None) -> tuple[Runtime, str]:
    """The CUDA of this nvcc, or of NVIDIA's wheels, and what names the compiler in a key. Raises WheelhouseError."""
    if nvcc is None:
        runtime = RUNTIMES[FROM_WHEELS]
        pins = read_lock(lock_path(project, runtime.lock()))
        return runtime, "\n".join(pin_named(pins, name).requirement() for name in toolkit.COMPILER_WHEELS)
    major, minor, words = toolkit.release_of(nvcc.resolve())
    return _runtime_for(project, major, minor), words


def _runtime_for(project: Path, major: int, minor: int) -> Runtime:
    runtime = RUNTIMES.get(major)
    if runtime is None:
        known = " and ".join(str(one) for one in sorted(RUNTIMES))
        raise WheelhouseError(f"nvcc is of CUDA {major}.{minor}; hives can get CUDA {known}: give another with --nvcc")
    pins = read_lock(lock_path(project, runtime.lock()))
    locked_version = runtime.version(pins)
    if minor > int(locked_version.split(".")[1]):
        raise WheelhouseError(
            f"nvcc is of CUDA {major}.{minor}, newer than the runtime that is locked ({locked_version}): "
            f"give an older one with --nvcc, or leave it out for NVIDIA's wheels"
        )
    return runtime
