"""The one place that runs pip."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.locks import Pin, Target
from llama_orch.wheelhouse.progress import Progress

# The newest glibc that a downloaded wheel may ask for: that of the oldest system a hive may run (RHEL 9).
NEWEST_GLIBC_MINOR = 34
# What pip prints with --progress-bar=raw; what it builds with is small and comes too.
_DOWNLOADED = re.compile(r"^Progress (\d+) of (\d+)$")
LARGE_BYTES = 10_000_000


def say(text: str) -> None:
    """Progress goes to stderr, so that stdout holds only what a script would read."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def run_pip(arguments: Sequence[str], environment: dict[str, str] | None = None, *, fetching: str = "") -> None:
    """Run pip in this Python. Raises WheelhouseError with the end of its output when it fails.

    `fetching` names one large file that it downloads, whose progress is shown.
    """
    if importlib.util.find_spec("pip") is None:
        raise WheelhouseError(f"{sys.executable} has no pip; use the Python of a virtual environment (`make venv`)")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    if fetching:
        command.append("--progress-bar=raw")
    lines: list[str] = []
    with (
        Progress(fetching, megabytes=True) if fetching else nullcontext() as progress,
        subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as pip,
    ):
        for line in pip.stdout or ():
            if (step := _DOWNLOADED.match(line)) is None:
                lines = [*lines[-60:], line]
            elif progress is not None and int(step[2]) > LARGE_BYTES:
                progress.show(int(step[1]), int(step[2]))
    if pip.returncode:
        tail = "".join(lines[-25:])
        raise WheelhouseError(f"pip {arguments[0]} failed with exit status {pip.returncode}:\n{tail}")


@contextmanager
def exactly(pins: Sequence[Pin]) -> Iterator[list[str]]:
    """The options by which pip takes these and checks their hashes."""
    with tempfile.TemporaryDirectory(prefix="llama-orch-lock-") as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text("".join(pin.requirement() + "\n" for pin in pins), encoding="utf-8")
        yield ["--require-hashes", f"--requirement={requirements}"]


def download(pins: Sequence[Pin], target: Target, into: Path, what: str) -> None:
    """Fetch a wheel of each pin that fits the target, hash-checked, into a folder; `what` names them all."""
    platforms = [f"manylinux_2_{minor}_{target.arch}" for minor in range(NEWEST_GLIBC_MINOR, 4, -1)]
    platforms += [f"manylinux2014_{target.arch}", f"manylinux2010_{target.arch}", f"manylinux1_{target.arch}"]
    abi = "cp" + target.python.replace(".", "")
    with exactly(pins) as these:
        run_pip(
            [
                "download",
                "--no-deps",
                "--only-binary=:all:",
                "--implementation=cp",
                f"--python-version={target.python}",
                *(f"--abi={name}" for name in (abi, "abi3", "none")),
                *(f"--platform={name}" for name in platforms),
                f"--dest={into}",
                *these,
            ],
            fetching=f"fetching {what}",
        )
