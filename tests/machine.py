"""What the tests run on: processor, compiler, C library and llama.cpp. `python -m tests.machine` prints it.

A test that fails on one machine alone mostly does so because of one of these.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TIMEOUT_S = 60
# Which of the instruction sets that llama.cpp's libraries differ by, as /proc/cpuinfo names them.
_SETS = {
    "AVX": r"avx",
    "AVX2": r"avx2",
    "FMA": r"fma",
    "F16C": r"f16c",
    "AVX-VNNI": r"avx_vnni",
    "AVX-512": r"avx512f",
    "AVX-512-VNNI": r"avx512_vnni",
    "AVX-512-BF16": r"avx512_bf16",
    "AMX-INT8": r"amx_int8",
    "AMX-BF16": r"amx_bf16",
}
# As a worker loads it, in a process of its own: on a machine where that kills it, it kills no test run.
_LOAD = "from llama_orch.worker.llama import backends; backends.load()"
# What ggml then writes to stderr.
_LOADED = re.compile(r"^load_backend: loaded \S+ backend from (.+)$", re.MULTILINE)


def describe() -> list[str]:
    """A few lines; what cannot be found out is said to be unknown."""
    return [
        f"processor: {processor(Path('/proc/cpuinfo').read_text())}, {len(os.sched_getaffinity(0))} cores",
        f"compiler: {_first_line(['c++', '--version'])}",
        f"C library: {' '.join(platform.libc_ver()).strip() or 'unknown'}, kernel {platform.release()}",
        f"llama.cpp: {llama_cpp()}",
    ]


def processor(cpuinfo: str) -> str:
    """Name and instruction sets of the first processor in what /proc/cpuinfo holds."""
    fields = dict(re.findall(r"^([^:\t]+)\t*: (.*)$", cpuinfo.partition("\n\n")[0], re.MULTILINE))
    flags = fields.get("flags", "").split()
    sets = [name for name, flag in _SETS.items() if flag in flags]
    numbers = "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{fields.get('model name', 'unknown')} ({numbers}) with {' '.join(sets) or 'none of AVX and AMX'}"


def llama_cpp() -> str:
    """Version of the binding, and which of its libraries for CPUs a worker loads here."""
    try:
        binding = version("llama-cpp-python")
    except PackageNotFoundError:
        return "not installed"
    done = subprocess.run(
        [sys.executable, "-c", _LOAD],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return f"llama-cpp-python {binding}, which cannot be loaded (status {done.returncode}): {last}"
    names = [Path(path).name for path in _LOADED.findall(done.stderr)]
    return f"llama-cpp-python {binding}, {' '.join(names) or 'its CPU backend inside'}"


def _first_line(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except OSError:
        return "none"
    return (done.stdout.splitlines() or ["unknown"])[0]


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in describe()))
