"""What the installed llama-cpp-python can run on. Only the worker loads it; the hive looks at its files."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import mmap
from pathlib import Path

# How llama.cpp asks a backend for it. Its CUDA backend has it no more since it splits tensors in another way.
_ROW_SPLIT = b"ggml_backend_split_buffer_type"


@functools.cache
def identity() -> str:
    """Names the installed engine: another one has files of other sizes or times."""
    files = sorted(path for path in _folder().glob("*") if path.is_file()) if _folder().is_dir() else []
    parts = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join([str(_folder()), *parts]).encode()).hexdigest()[:16]


@functools.cache
def has_cuda() -> bool:
    """Whether the build has a CUDA backend."""
    return bool(_cuda_libraries())


@functools.cache
def splits_rows() -> bool:
    """Whether the CUDA backend of the build can split a model by rows."""
    return any(_contains(library, _ROW_SPLIT) for library in _cuda_libraries())


def _cuda_libraries() -> list[Path]:
    return sorted(_folder().glob("libggml-cuda*.so*"))


def _folder() -> Path:
    """Where the engine's libraries lie, whether it is installed or not."""
    spec = importlib.util.find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec is not None and spec.origin is not None else Path("/nonexistent")


def _contains(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0
