"""Libraries of the engine that are not right, alone or in front of a copy of the installed ones."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from llama_orch.wheelhouse import sources
from llama_orch.wheelhouse.engine import default_cache
from llama_orch.worker.llama import backends

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent


def package() -> Path:
    """The folder of the installed binding."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def engine_with(kind: str, folder: Path) -> Path:
    """A folder for PYTHONPATH whose engine tries a library of `kind`, "dies" or "wrong", before all others."""
    site = folder / "site"
    libraries = site / "llama_cpp" / "lib"
    shutil.copytree(package(), site / "llama_cpp", ignore=shutil.ignore_patterns("__pycache__"))
    real = libraries / backends.cpu_libraries()[0].name
    base = ["-L", str(libraries), "-l:libggml-base.so.0"] if kind == "wrong" else []
    _compile(kind, libraries / f"libggml-cpu-{kind}.so", f'-DREAL="{real}"', *base)
    return site


def cuda_without_gpu(path: Path) -> None:
    """Put there a CUDA backend that can be loaded and shows no GPU."""
    _compile("no_gpu", path)


def _compile(kind: str, out: Path, *more: str) -> None:
    llama_cpp = sources.llama_cpp(sources.pinned(ROOT), default_cache())
    includes = [f"-I{llama_cpp / 'ggml' / part}" for part in ("include", "src")]
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", *includes]
    subprocess.run(["cc", *flags, str(HERE / f"{kind}.c"), "-o", str(out), *more], check=True, timeout=120)


def environment(site: Path) -> dict[str, str]:
    """What a process's environment must have besides, so that it uses that engine."""
    return {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "agent")])}
