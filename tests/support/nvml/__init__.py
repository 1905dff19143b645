"""A GPU for machines without one: NVML's functions in C, so that nvidia-ml-py itself is what runs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
NOT_SUPPORTED, GPU_IS_LOST, RESET_REQUIRED, DRIVER_NOT_LOADED, VERSION_MISMATCH, UNKNOWN = 3, 15, 16, 9, 18, 999
GIB = 2**30


def gpu(index: int = 0, total: int = 24 * GIB, used: int = 4 * GIB, **more: object) -> dict[str, object]:
    """What a healthy GPU answers. `more` sets it otherwise: `error(15)` is an error, None what it does not know."""
    healthy: dict[str, object] = {
        "name": "Test-GPU",
        "uuid": f"GPU-{index}",
        "pci": f"00000000:0{index + 1}:00.0",
        "capability": 89,
        "total": total,
        "used": used,
        "utilization": 42,
        "temperature": 61,
        "slowdown": 95,
        "power": 123456,
        "limit": 450000,
        "reasons": 0,
        "clock": 2520,
        "memory_clock": 10501,
        "process": 0,
        "corrected": 0,
        "uncorrected": 0,
        "corrected_ever": 2,
        "uncorrected_ever": 0,
        "remap_pending": 0,
        "remap_failed": 0,
    }
    return healthy | more


def error(code: int) -> str:
    """The value that makes NVML answer this error."""
    return f"E{code}"


class FakeNvml:
    """The library in a folder of its own, and the file that drives it, read anew for each reading.

    A process sees it with the environment of `environment`; without one, it reads the file `elsewhere`.
    """

    def __init__(self, folder: Path, elsewhere: str = "") -> None:
        self.state = folder / "gpus"
        self._folder = folder
        subprocess.run(
            [
                "cc",
                "-shared",
                "-fPIC",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-pthread",
                f'-DSTATE="{elsewhere}"',
                "-o",
                str(self.library),
                str(SOURCE),
            ],
            check=True,
            timeout=60,
        )
        self.set()

    @property
    def library(self) -> Path:
        """The library's file."""
        return self._folder / "libnvidia-ml.so.1"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see these GPUs."""
        return {"LD_LIBRARY_PATH": str(self._folder), "FAKE_NVML": str(self.state)}

    def set(
        self,
        *gpus: dict[str, object],
        init: int = 0,
        hang: int = 0,
        crash: bool = False,
        xids: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Make it these GPUs.

        `init` is the error that NVML answers to everything, `hang` its seconds of silence; `crash` ends the process
        that asks. `xids` are (index, code), each told once.
        """
        lines = [f"init {init}", f"hang {hang}", f"crash {int(crash)}", f"count {len(gpus)}"]
        lines += [f"xid.{number} {index}:{code}" for number, (index, code) in enumerate(xids)]
        for index, one in enumerate(gpus):
            lines += [f"{index}.{key} {value}" for key, value in one.items() if value is not None]
        written = self.state.with_suffix(".new")
        written.write_text("\n".join(lines) + "\n")
        written.replace(self.state)
