"""What the installed llama-cpp-python can run on. Only the worker loads it; the hive looks at its files."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path


@functools.cache
def has_cuda() -> bool:
    """Whether the build has a CUDA backend, in either of the places where builds keep theirs."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return False
    package = Path(spec.origin).parent
    return any(any(folder.glob("libggml-cuda*.so*")) for folder in (package / "lib", package.parent / "bin"))
