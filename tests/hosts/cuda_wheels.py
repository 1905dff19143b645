"""`python -m tests.hosts.cuda_wheels FROM TO`: the wheelhouse FROM with a CUDA add-on beside, in the folder TO.

The add-on is whole but for its content: compiling the real one takes hours. What the roles do with it is the same.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llama_orch.wheelhouse import cuda, cuda_house, engine
from llama_orch.wheelhouse.content import Content
from llama_orch.wheelhouse.wheel_file import Wheel, metadata

ROOT = Path(__file__).parents[2]
# What Debian's own drivers do for.
FACTS = {"runtime": "12.9", "least_driver": "525.60.13", "architectures": ["61", "86", "89"], "ptx": []}


def make(wheelhouse: Path, out: Path) -> Path:
    """Link to all that is in the wheelhouse and add the add-on; answers its folder."""
    out.mkdir(parents=True, exist_ok=True)
    for path in wheelhouse.iterdir():
        link = out / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    version = cuda.backend(ROOT, out).llama().version

    def fill(folder: Path) -> dict[str, Any]:
        library = folder / cuda.LIBRARY
        library.write_bytes(b"no library\n")
        whole = f"{version}+cu{FACTS['runtime']}"
        files = {f"{engine.LIBRARIES}/{cuda.LIBRARY}": library}
        Wheel(cuda.NAME, whole, metadata(cuda.NAME, whole, []), files).write(folder)
        library.unlink()
        return {"part": "cuda", "arch": "x86_64", "llama_cpp_python": version, "cuda": FACTS}

    return Content(out, "fedcba9876543210", cuda_house.LABEL, cuda_house.LABEL, fill).build()


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
