"""ggml's backends and devices, through ctypes: the binding has no functions for them.

Source: ggml's public header `ggml-backend.h`. Our engine has one library per generation of processors, and one for CUDA
where that was installed, beside llama.cpp's own; a plain build of llama-cpp-python has its backend inside.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from llama_orch.contract.devices import Backend

from ..generation import CannotServe

_FOLDERS = re.compile(r"(?<![^\s:'])/\S*/")
_GPU_TYPES = {1, 2}  # GGML_BACKEND_DEVICE_TYPE_GPU, _IGPU


@dataclass(frozen=True)
class Device:
    """A device as ggml sees it; `handle` is its `ggml_backend_dev_t`."""

    handle: int
    name: str
    backend: str
    is_gpu: bool


def show_only(backend: Backend, devices: list[str]) -> None:
    """Let CUDA see the devices that are meant, in this order, by UUID or as NVML numbers them. Comes before `load`."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices) if backend == "cuda" else ""


def load(backend: Backend = "cpu", cpu_library: str | None = None) -> list[Device]:
    """Load the backend and return all devices. Raises CannotServe without any.

    `cpu_library` is the file that this machine's self-test chose; None takes the one that rates itself best. For the
    CPU nothing else is touched: CUDA would ask the driver, and one that hangs must not hold up such a worker.
    """
    ggml = library()
    folder = libraries_folder()
    best = folder / cpu_library if cpu_library else next(iter(cpu_libraries()), None)
    if best is not None and not ggml.ggml_backend_load(os.fsencode(best)):
        raise CannotServe(
            "backend_unavailable",
            f"llama.cpp cannot load {best.name}",
            "restart the hive's agent, which tests the engine anew; or provision the machine again",
        )
    if backend == "cuda":
        for found in cuda_libraries():
            ggml.ggml_backend_load(os.fsencode(found))
    found_devices = devices()
    if not found_devices:
        raise CannotServe(
            "backend_unavailable",
            "llama.cpp found no backend that runs on this processor",
            "install llama-cpp-python again, built for this machine's architecture",
        )
    return found_devices


def devices() -> list[Device]:
    """The devices of all backends that are loaded."""
    ggml = library()
    return [_describe(ggml, index) for index in range(ggml.ggml_backend_dev_count())]


def cpu_libraries() -> list[Path]:
    """The CPU libraries that say of themselves that they run here, the best first, as ggml chooses."""
    found = sorted(libraries_folder().glob("libggml-cpu-*.so"))
    # 0 is one that cannot run on this processor.
    scores = {path: score for path in found if (score := ctypes.CDLL(str(path)).ggml_backend_score())}
    return sorted(scores, key=scores.__getitem__, reverse=True)


def cuda_libraries() -> list[Path]:
    """The CUDA backend where it is installed."""
    return sorted(libraries_folder().glob("libggml-cuda*.so"))


def libraries_folder() -> Path:
    """Where the engine's libraries lie. Raises CannotServe where it is not installed."""
    return _package_folder() / "lib"


def choose(devices: list[Device], backend: Backend, asked: list[int], said: str = "") -> list[Device]:
    """The devices to offload to: none for the CPU, all that were asked for with CUDA.

    `said` is the last error of CUDA that ggml wrote to its log, "" for none. Raises CannotServe rather than fall back,
    or make do with fewer.
    """
    if backend == "cpu":
        return []
    cuda = [found for found in devices if found.is_gpu and found.backend.upper() == "CUDA"]
    if len(cuda) < len(asked):
        seen = ", ".join(found.name for found in devices)
        raise CannotServe(
            "backend_unavailable",
            f"CUDA device {', '.join(map(str, asked))} was asked for, but llama.cpp sees only: {seen}; "
            + _why_no_cuda(said),
            "check with nvidia-smi that the driver works and the device exists, and that the hive was provisioned with "
            "its CUDA wheels (`make wheelhouse-cuda`, then the playbook); or start the worker with backend cpu",
        )
    return cuda[: len(asked)]


def _why_no_cuda(said: str) -> str:
    """What the loader of libraries, or else CUDA itself, says where there are too few devices; names no path."""
    found = cuda_libraries()
    if not found:
        return "its CUDA backend is not installed"
    if why := why_not_loaded(found[0]):
        return f"its CUDA backend cannot be loaded: {why}"
    return f"CUDA says: {said}" if said else "its CUDA backend was loaded and shows no more devices"


def why_not_loaded(library: Path) -> str:
    """The loader's own words, without paths; "" where it can be loaded. ggml tries the same and does not tell."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return _FOLDERS.sub("", str(error))
    return ""


def _package_folder() -> Path:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise CannotServe(
            "backend_unavailable", "llama-cpp-python is not installed", "install llama-orch with the extra 'hive'"
        )
    return Path(spec.origin).parent


def library() -> ctypes.CDLL:
    """The ggml that llama.cpp uses. Raises CannotServe where it is not installed."""
    # In a plain build both are there, as copies: only the first is what libllama.so itself uses, and backends loaded
    # into the other end in a segmentation fault.
    for name in ("libggml.so.0", "libggml.so"):
        path = libraries_folder() / name
        if path.exists():
            ggml = ctypes.CDLL(str(path))
            break
    else:
        raise CannotServe("backend_unavailable", "llama-cpp-python has no libggml.so", "install llama-cpp-python again")
    handle, text = ctypes.c_void_p, ctypes.c_char_p
    for name, arguments, result in (
        ("ggml_backend_load_all_from_path", [text], None),
        ("ggml_backend_load", [text], handle),
        ("ggml_backend_dev_count", [], ctypes.c_size_t),
        ("ggml_backend_dev_get", [ctypes.c_size_t], handle),
        ("ggml_backend_dev_name", [handle], text),
        ("ggml_backend_dev_type", [handle], ctypes.c_int),
        ("ggml_backend_dev_backend_reg", [handle], handle),
        ("ggml_backend_reg_name", [handle], text),
    ):
        function = getattr(ggml, name)
        function.argtypes = arguments
        function.restype = result
    return ggml


def _describe(ggml: ctypes.CDLL, index: int) -> Device:
    handle = ggml.ggml_backend_dev_get(index)
    return Device(
        handle=handle,
        name=ggml.ggml_backend_dev_name(handle).decode(errors="replace"),
        backend=ggml.ggml_backend_reg_name(ggml.ggml_backend_dev_backend_reg(handle)).decode(errors="replace"),
        is_gpu=ggml.ggml_backend_dev_type(handle) in _GPU_TYPES,
    )
