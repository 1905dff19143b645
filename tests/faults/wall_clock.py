"""A wall clock that jumps, for single processes: the machine's own would jump for everything that runs on it."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from random import Random

SOURCE = Path(__file__).with_suffix(".c")
HOUR, DAY = 3600, 86400


class WallClock:
    """The library in a folder of its own, and the file that drives it. Processes get it by `environment`."""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "libwall_clock.so"
        self.shift_file = folder / "shift"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(self.library), str(SOURCE)],
            check=True,
            timeout=60,
        )
        self.shift_file.write_bytes(shift(0))

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to have this clock."""
        return {"LD_PRELOAD": str(self.library), "FAULTS_CLOCK": str(self.shift_file)}

    def set(self, seconds: int) -> None:
        """Shift the clock by so many seconds from the machine's."""
        set_shift(self.shift_file, seconds)


def shift(seconds: int) -> bytes:
    """What the file of a clock holds."""
    return struct.pack("=q", seconds)


def set_shift(file: Path, seconds: int) -> None:
    """Write it into a file that processes have mapped: it must stay the same file."""
    with file.open("r+b") as opened:
        opened.write(shift(seconds))


def somewhere(random: Random) -> int:
    """A shift such as a dead battery, a wrong time zone or a late answer of a time server makes."""
    return random.choice([-10 * 365 * DAY, -DAY, -HOUR, -30, 0, 30, HOUR, DAY, 10 * 365 * DAY])
