"""A GPU for machines without one: NVML's functions in C, so that nvidia-ml-py itself is what runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
NOT_SUPPORTED, GPU_IS_LOST, DRIVER_NOT_LOADED, VERSION_MISMATCH = 3, 15, 9, 18


class FakeNvml:
    """The library in a folder of its own, and the file that drives it, read anew at each call.

    A process sees it with the environment of `environment`.
    """

    def __init__(self, folder: Path) -> None:
        self._state = folder / "gpus"
        self._folder = folder
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)],
            check=True,
            timeout=60,
        )
        self.set()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to see these GPUs."""
        return {"LD_LIBRARY_PATH": str(self._folder), "FAKE_NVML": str(self._state)}

    def set(self, *gpus: tuple[int, int], init: int = 0, error: int = 0, hang: int = 0) -> None:
        """Make it GPUs of (total, used) bytes; `init` and `error` are what NVML answers, `hang` seconds of silence.

        `error` is for everything but memory and names, as machines with shared memory or old boards have it.
        """
        lines = [f"{init} {error} {hang} {len(gpus)}", *(f"{total} {used}" for total, used in gpus)]
        written = self._state.with_suffix(".new")
        written.write_text("\n".join(lines) + "\n")
        written.replace(self._state)
