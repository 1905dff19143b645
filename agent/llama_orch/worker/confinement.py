"""What a worker leaves itself before it reads a model, whose maker nobody knows and whose reader is a lot of C++.

The worker runs as the hive's agent does, so without this a fault in llama.cpp hands a model the agent's tokens, other
workers' files and other models. Readable stay the model, the order, Python, libraries and what tells of the machine;
writable its folder for temporary files, and with CUDA the devices and the cache of compiled kernels. It starts no
program, listens nowhere else and connects to nobody.

Not confined are the shim, which reads nothing of anybody else's and must write into the folder, and the first try of
the engine's self-test, which computes with models of its own making only (and lets CUDA's driver make its device
files).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from llama_orch.contract.process import FAILURE_FILE, SPEC_FILE, WorkerSpec
from llama_orch.web import landlock
from llama_orch.web.landlock import Access

from .llama import model_file

log = logging.getLogger(__name__)

READ = Access.READ_FILE | Access.READ_DIR
WRITE = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.MAKE_REG
    | Access.MAKE_DIR
    | Access.REMOVE_FILE
    | Access.REMOVE_DIR
)  # fmt: skip
DEVICE = Access.READ_FILE | Access.READ_DIR | Access.WRITE_FILE | Access.IOCTL_DEV

_LIBRARIES = (
    "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/lib", "/lib64", "/usr/local/lib", "/usr/local/lib64",
    "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf",
)  # fmt: skip
# What llama.cpp, glibc and Python ask of the machine. Of other processes nothing.
_MACHINE = (
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/sys/vm",
    "/proc/sys/kernel", "/sys/devices", "/sys/fs/cgroup", "/sys/kernel/mm",
)  # fmt: skip
_HARMLESS_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
# Where NVIDIA's driver and runtime lie on machines that have them elsewhere than in the libraries' own folders.
_CUDA_LIBRARIES = (
    "/usr/local/cuda",
    "/usr/local/nvidia",
    "/opt/cuda",
    "/run/opengl-driver",
    "/etc/nvidia",
    "/usr/share/nvidia",
)
_CUDA_MACHINE = (
    "/proc/driver/nvidia", "/proc/driver/nvidia-uvm", "/proc/devices", "/proc/modules", "/proc/version",
    "/sys/bus/pci", "/sys/class", "/sys/module",
)  # fmt: skip


def confine(spec: WorkerSpec, folder: Path) -> bool:
    """Confine this process, which must have no second thread yet; False where it cannot be, with the reason logged."""
    if not spec.confined:
        log.warning("not confined, as the hive's confine_workers says")
        return False
    if not (version := landlock.abi()):
        log.warning("not confined: the kernel has no Landlock, or it is not switched on")
        return False
    # Threads that are there already would go on as they are.
    if (threads := _threads()) > 1:
        log.error("not confined: %d threads run already", threads)
        return False
    try:
        landlock.restrict(allowed(spec, folder), version)
    except OSError as error:
        log.error("not confined: %s", error.strerror)  # noqa: TRY400  no error of ours
        return False
    log.info("confined by Landlock, version %d of its ABI", version)
    return True


def allowed(spec: WorkerSpec, folder: Path) -> list[tuple[Path, Access]]:
    """All that the worker keeps: paths with what is below them, and what may be done there."""
    model = Path(spec.model_path)
    found = [(part.resolve(), Access.READ_FILE) for part in model_file.parts(model)]
    found.append((folder / SPEC_FILE, Access.READ_FILE))
    found.append((temporary(folder), WRITE))
    found += [(path, READ) for path in _readable(folder, [*_python(), *map(Path, _LIBRARIES), *_loaded_from()])]
    found += [(Path(path), READ) for path in _MACHINE]
    found += [(Path(path), Access.READ_FILE | Access.WRITE_FILE) for path in _HARMLESS_DEVICES]
    if spec.backend == "cuda":
        found += [(path, READ) for path in _readable(folder, map(Path, _CUDA_LIBRARIES))]
        found += [(Path(path), READ) for path in _CUDA_MACHINE]
        found += [(path, DEVICE) for path in (*sorted(Path("/dev").glob("nvidia*")), Path("/dev/dri"))]
        found.append((_cuda_cache(), WRITE))
        # CUDA names its threads, by a file of each, and does not start where it cannot (CUDA_ERROR_OPERATING_SYSTEM).
        found.append((Path("/proc/self/task"), READ | Access.WRITE_FILE | Access.TRUNCATE))
    return found


def prepare(spec: WorkerSpec, folder: Path) -> None:
    """Make the folders that it may write to. Raises OSError."""
    temporary(folder).mkdir(mode=0o700, exist_ok=True)
    os.environ["TMPDIR"] = str(temporary(folder))
    if spec.backend == "cuda":
        # Without it CUDA compiles anew at each start, where it has to.
        with contextlib.suppress(OSError):
            _cuda_cache().mkdir(mode=0o700, parents=True, exist_ok=True)


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def temporary(folder: Path) -> Path:
    """The one folder that a worker may write to; why it failed stands there as well."""
    return (folder / FAILURE_FILE).parent


def _python() -> list[Path]:
    """The interpreter's own folders and those that it imports from."""
    folders = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *sysconfig.get_paths().values()}
    return sorted(Path(one).absolute() for one in {*folders, *filter(None, sys.path)})


def _loaded_from() -> list[Path]:
    """Where the loader of libraries is told to look."""
    return [Path(one) for one in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if one.startswith("/")]


def _readable(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Without those that hold the worker's own folder: the other workers' are beside it."""
    found: list[Path] = []
    for path in paths:
        if folder.resolve().is_relative_to(path.resolve()):
            log.warning("%s stays closed to the worker, as its own folder is below it", path)
        else:
            found.append(path)
    return found


def _cuda_cache() -> Path:
    return Path(os.environ.get("CUDA_CACHE_PATH") or Path(os.environ.get("HOME", "/nonexistent"), ".nv/ComputeCache"))
