"""ggml's backends and devices, through ctypes: the binding has no functions for them.

Source: ggml's public header `ggml-backend.h`. A portable build keeps one library per processor generation (and
one for CUDA) in `<site-packages>/bin`, where the binding does not look; a plain build has its backend inside.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from llama_orch.contract.devices import Backend

from .generation import CannotServe

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


def load(backend: Backend = "cpu") -> list[Device]:
    """Load what this machine can run of the backend, and return all devices. Raises CannotServe without any.

    For the CPU nothing else is touched: CUDA would ask the driver, and one that hangs must not hold up such a worker.
    """
    ggml = library()
    folder = _package_folder().parent / "bin"
    if backend == "cuda" and any(folder.glob("libggml-*.so")):
        ggml.ggml_backend_load_all_from_path(os.fsencode(folder))
    elif best := _best_for_this_processor(folder):
        ggml.ggml_backend_load(os.fsencode(best))
    devices = [_describe(ggml, index) for index in range(ggml.ggml_backend_dev_count())]
    if not devices:
        raise CannotServe(
            "backend_unavailable",
            "llama.cpp found no backend that runs on this processor",
            "install llama-cpp-python again, built for this machine's architecture",
        )
    return devices


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
    package = _package_folder()
    found = [path for folder in (package.parent / "bin", package / "lib") for path in folder.glob("libggml-cuda*.so")]
    if not found:
        return "its CUDA backend is not installed"
    # ggml tries the same and keeps the reason to itself.
    try:
        ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"its CUDA backend cannot be loaded: {_FOLDERS.sub('', str(error))}"
    return f"CUDA says: {said}" if said else "its CUDA backend was loaded and shows no more devices"


def _best_for_this_processor(folder: Path) -> Path | None:
    """The CPU backend with the highest score of its own, as ggml chooses; 0 is one that cannot run here."""
    scores = {path: ctypes.CDLL(str(path)).ggml_backend_score() for path in sorted(folder.glob("libggml-cpu-*.so"))}
    return max((path for path, score in scores.items() if score), key=scores.__getitem__, default=None)


def _package_folder() -> Path:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise CannotServe(
            "backend_unavailable", "llama-cpp-python is not installed", "install llama-orch with the extra 'hive'"
        )
    return Path(spec.origin).parent


def library() -> ctypes.CDLL:
    """The ggml that llama.cpp uses. Raises CannotServe where it is not installed."""
    package = _package_folder()
    # The wheel holds copies where links should be; only this one is what libllama.so itself uses, and backends
    # loaded into another copy end in a segmentation fault.
    for name in ("libggml.so.0", "libggml.so"):
        path = package / "lib" / name
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
