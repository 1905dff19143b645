"""Runs what compiles, and asks for the compilers that a build cannot do without."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence

from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.pip import say

_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
_SAY_EVERY_S = 60


def need_compiler(what: str) -> None:
    """Raise WheelhouseError, saying what to install, where this machine has no C and C++ compiler."""
    if (shutil.which("c++") or shutil.which("g++")) and (shutil.which("cc") or shutil.which("gcc")):
        return
    raise WheelhouseError(
        f"{what} has to be built and there is no C++ compiler; install one "
        "(Debian and Ubuntu: `apt install build-essential`, RHEL: `dnf install gcc-c++`)"
    )


def run(command: Sequence[str]) -> str:
    """What a command prints. Raises WheelhouseError with the end of it where it fails or cannot be started."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise WheelhouseError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        raise WheelhouseError(f"{command[0]} failed with exit status {done.returncode}:\n{tail}")
    return done.stdout


def run_ninja(command: list[str]) -> None:
    """Run it and say once a minute how far it is. Raises WheelhouseError with the end of what it printed."""
    said = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as ninja:
        for line in ninja.stdout or ():
            lines = [*lines[-60:], line]
            step = _STEP.match(line)
            if step and time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                say(f"compiled {step[1]} of {step[2]}")
    if ninja.returncode:
        raise WheelhouseError(f"ninja failed with exit status {ninja.returncode}:\n{''.join(lines[-40:])}")
