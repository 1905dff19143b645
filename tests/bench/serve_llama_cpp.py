"""Runs llama-cpp-python's own server, in an environment of its own that has nothing else of ours.

The engine has a library for each generation of processors, which the binding does not load by itself.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import runpy
from pathlib import Path


def main() -> None:
    found = importlib.util.find_spec("llama_cpp")
    assert found is not None and found.origin is not None
    package = Path(found.origin).parent
    ggml = ctypes.CDLL(str(package / "lib" / "libggml.so.0"))
    ggml.ggml_backend_load_all_from_path(os.fsencode(package / "lib"))
    runpy.run_module("llama_cpp.server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
