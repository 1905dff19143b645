"""CPU, memory and disk, read from the kernel at each question."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llama_orch.contract.devices import CpuInfo, MemoryInfo


def memory() -> MemoryInfo:
    """The machine's memory, and what of it can be had without swapping."""
    values = _fields(Path("/proc/meminfo"))
    return MemoryInfo(total_bytes=values["MemTotal"], available_bytes=values["MemAvailable"])


def disk(path: Path) -> MemoryInfo:
    """The disk that holds `path`."""
    usage = shutil.disk_usage(path)
    return MemoryInfo(total_bytes=usage.total, available_bytes=usage.free)


def cpu() -> CpuInfo:
    """The processor; `cores` are those that this process may use."""
    return CpuInfo(model=_model_name(), cores=cores(), load_1m=round(os.getloadavg()[0], 2))


def cores() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0))


def held_memory(pid: int) -> int:
    """Memory of a process that is missing from what is available, so not the files that it maps; 0 once it ended."""
    try:
        values = _fields(Path(f"/proc/{pid}/status"))
    except OSError:
        return 0
    return values.get("RssAnon", 0) + values.get("RssShmem", 0)


def _fields(path: Path) -> dict[str, int]:
    values: dict[str, int] = {}
    for line in path.read_text().splitlines():
        key, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            values[key] = int(words[0]) * 1024
    return values


def _model_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model", "Hardware"}:
            return value.strip()
    return os.uname().machine
