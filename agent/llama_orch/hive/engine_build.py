"""What the installed llama-cpp-python can run on. Only the worker loads it; the hive looks at its files."""

from __future__ import annotations

import functools
import importlib.util
import mmap
from pathlib import Path

# How llama.cpp asks a backend for it. Its CUDA backend has it no more since it splits tensors in another way.
_ROW_SPLIT = b"ggml_backend_split_buffer_type"


@functools.cache
def has_cuda() -> bool:
    """Whether the build has a CUDA backend."""
    return bool(_cuda_libraries())


@functools.cache
def splits_rows() -> bool:
    """Whether the CUDA backend of the build can split a model by rows."""
    return any(_contains(library, _ROW_SPLIT) for library in _cuda_libraries())


def _cuda_libraries() -> list[Path]:
    """The CUDA backend's library, in either of the places where builds keep theirs."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return []
    package = Path(spec.origin).parent
    return [found for folder in (package / "lib", package.parent / "bin") for found in folder.glob("libggml-cuda*.so*")]


def _contains(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0
