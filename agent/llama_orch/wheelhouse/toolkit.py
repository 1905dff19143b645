"""The CUDA compiler: put together from NVIDIA's wheels, or the one that the machine has."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from llama_orch.wheelhouse.compiler import run
from llama_orch.wheelhouse.errors import WheelhouseError

# What has to be compiled with, beside the runtime itself; for CUDA 12 there is no nvcc in any wheel.
COMPILER_WHEELS = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl")
_ROOT = re.compile(r"^nvidia/cu\d+/(?P<inside>.+)$")
_PROGRAMS = ("bin/", "nvvm/bin/")
_RELEASE = re.compile(r"release (\d+)\.(\d+)")


def lay_out(wheels: Sequence[Path], folder: Path) -> Path:
    """Unpack NVIDIA's wheels into one folder as its installer lays it out, and answer the path of nvcc.

    The wheels lack what only a linker asks for: names without a version, the 64-bit folder that CMake looks in, and
    the driver's library, which comes with the driver and not with CUDA. Raises WheelhouseError.
    """
    for wheel in wheels:
        _unpack(wheel, folder)
    libraries = folder / "lib"
    nvcc = folder / "bin" / "nvcc"
    if not nvcc.is_file() or not libraries.is_dir():
        raise WheelhouseError("NVIDIA's wheels hold no nvcc where it is expected, nvidia/cu13/bin; run `make lock`")
    (folder / "lib64").symlink_to("lib")
    for library in sorted(libraries.glob("lib*.so.*")):
        plain = library.with_name(library.name.split(".so.")[0] + ".so")
        if not plain.exists():
            plain.symlink_to(library.name)
    stub = libraries / "stubs" / "libcuda.so"
    stub.parent.mkdir()
    # Empty: what is missing in it is found in the real one when the backend is loaded.
    run(["cc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", str(stub), "-x", "c", "/dev/null"])
    return nvcc


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            found = _ROOT.match(info.filename)
            if not found or info.is_dir():
                continue
            path = folder / found["inside"]
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, path.open("wb") as target:
                while part := source.read(1 << 20):
                    target.write(part)
            if found["inside"].startswith(_PROGRAMS):
                path.chmod(0o755)


def release_of(nvcc: Path) -> tuple[int, int, str]:
    """The CUDA release that an nvcc is of, and the same in its own words.

    Raises WheelhouseError where it does not run and where its toolkit lacks what is built with.
    """
    if not nvcc.is_file():
        raise WheelhouseError(f"there is no {nvcc}: give nvcc's path with --nvcc, or leave it out for NVIDIA's wheels")
    words = run([str(nvcc), "--version"])
    found = _RELEASE.search(words)
    if not found:
        raise WheelhouseError(f"{nvcc} --version does not name a release; give the path of nvcc with --nvcc")
    try:
        run([str(nvcc), "-x", "cu", "-E", "-include", "cublas_v2.h", "/dev/null", "-o", "/dev/null"])
    except WheelhouseError as error:
        raise WheelhouseError(
            f"{nvcc} finds no cuBLAS: install its development package (libcublas-dev, libcublas-devel) beside, or "
            f"leave --nvcc out for NVIDIA's wheels. {error}"
        ) from None
    return int(found[1]), int(found[2]), words
