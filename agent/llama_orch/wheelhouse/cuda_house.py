"""Puts together the add-on that gives a hive CUDA: the backend's wheel and NVIDIA's wheels of the CUDA runtime."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from llama_orch.wheelhouse.architectures import code_of
from llama_orch.wheelhouse.content import Content
from llama_orch.wheelhouse.cuda import Backend

LABEL = "cuda-x86_64"


def content(backend: Backend, out: Path) -> Content:
    """The add-on's folder and the link to it. It is for every Python: no wheel in it depends on one."""
    key = hashlib.sha256("\0".join([LABEL, *backend.inputs()]).encode()).hexdigest()[:16]

    def fill(folder: Path) -> dict[str, Any]:
        wheel = backend.wheel()
        for path in (*backend.runtime_wheels(), wheel):
            shutil.copy2(path, folder / path.name)
        machine_code, ptx = code_of(backend.architectures)
        return {
            "part": "cuda",
            "arch": "x86_64",
            "llama_cpp_python": backend.llama().version,
            "cuda": {
                "runtime": backend.runtime.version(backend.pins()),
                "least_driver": backend.runtime.least_driver,
                "architectures": machine_code,
                "ptx": ptx,
            },
        }

    return Content(out, key, LABEL, LABEL, fill)


def build(backend: Backend, out: Path) -> Path:
    """Make the add-on where it is missing, point to it, and answer its path. Raises WheelhouseError."""
    house = content(backend, out)
    if not (house.folder() / "manifest.json").is_file():
        # Before the wheelhouse is locked: this may take hours, and `make wheelhouse` need not wait for it.
        backend.wheel()
    return house.build()
