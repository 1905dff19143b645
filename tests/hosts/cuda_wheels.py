"""`python -m tests.hosts.cuda_wheels FROM TO`: the wheelhouse FROM with CUDA add-ons beside, in the folder TO.

The add-ons are whole but for their content, a library that shows no GPU: compiling the real one takes hours. What the
roles do with them is the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llama_orch.wheelhouse import cuda, cuda_house, engine, sources
from llama_orch.wheelhouse.content import Content
from llama_orch.wheelhouse.cuda_runtime import RUNTIMES
from llama_orch.wheelhouse.wheel_file import Wheel, metadata
from tests.support.engine import copies

ROOT = Path(__file__).parents[2]
# By their keys: what Debian's own drivers do for, and what no host of the tests has.
ADD_ONS = {
    "fedcba9876543210": ("12.9", ["61"]),
    "edcba9876543210f": ("12.9", ["86", "89"]),
    "dcba9876543210fe": ("13.0", ["75", "120a"]),
}


def make(wheelhouse: Path, out: Path) -> None:
    """Link to all that is in the wheelhouse and add the add-ons."""
    out.mkdir(parents=True, exist_ok=True)
    for path in wheelhouse.iterdir():
        link = out / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    for key, (runtime, architectures) in ADD_ONS.items():
        _add_on(out, key, runtime, architectures)


def _add_on(out: Path, key: str, runtime: str, architectures: list[str]) -> None:
    version, major = sources.pinned(ROOT).version, int(runtime.partition(".")[0])
    facts = {
        "runtime": runtime,
        "least_driver": RUNTIMES[major].least_driver,
        "architectures": architectures,
        "ptx": [],
    }

    def fill(folder: Path) -> dict[str, Any]:
        library = folder / cuda.LIBRARY
        copies.cuda_without_gpu(library)
        whole = f"{version}+cu{runtime}"
        files = {f"{engine.LIBRARIES}/{cuda.LIBRARY}": library}
        Wheel(cuda.NAME, whole, metadata(cuda.NAME, whole, []), files).write(folder)
        library.unlink()
        return {"part": "cuda", "arch": "x86_64", "llama_cpp_python": version, "cuda": facts}

    pointer = f"{cuda_house.LABEL}-cu{major}-{'-'.join(architectures)}"
    Content(out, key, cuda_house.LABEL, pointer, fill).build()


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
