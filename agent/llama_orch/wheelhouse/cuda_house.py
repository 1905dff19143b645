"""Puts together the add-on that gives a hive CUDA: the backend's wheel and NVIDIA's wheels of the CUDA runtime.

There may be several beside each other, for other GPUs or of another CUDA: preflight chooses for each host.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from llama_orch.wheelhouse.architectures import code_of, name_of
from llama_orch.wheelhouse.content import Content
from llama_orch.wheelhouse.cuda import Backend
from llama_orch.wheelhouse.files import locked

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

    return Content(out, key, LABEL, f"{LABEL}-cu{backend.runtime.major}-{name_of(backend.architectures)}", fill)


def build(backend: Backend, out: Path) -> Path:
    """Make the add-on where it is missing, point to it, and answer its path. Raises WheelhouseError.

    Add-ons for another llama-cpp-python, which no hive can use any more, go as what is replaced does.
    """
    house = content(backend, out)
    if not (house.folder() / "manifest.json").is_file():
        # Before the wheelhouse is locked: this may take hours, and `make wheelhouse` need not wait for it.
        backend.wheel()
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", "another build of the wheelhouse"):
        _let_go_of_outdated(out, backend.llama().version)
    return house.build()


def _let_go_of_outdated(out: Path, version: str) -> None:
    for link in out.glob(f"{LABEL}*"):
        manifest = link / "manifest.json"
        if not link.is_symlink() or not manifest.is_file():
            continue
        if json.loads(manifest.read_text(encoding="utf-8")).get("llama_cpp_python") != version:
            # From now on it is replaced, whenever it was built.
            os.utime(link)
            link.unlink()
