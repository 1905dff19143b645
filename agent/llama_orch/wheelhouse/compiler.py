"""Runs what compiles, and asks for the compilers that a build cannot do without."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.progress import Progress

_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
# As CMake looks for them: the user's choice, then these by name.
_COMPILERS = {"CC": ("cc", "gcc", "clang"), "CXX": ("c++", "g++", "clang++")}


def need_compiler(what: str) -> None:
    """Raise WheelhouseError, saying what to install, where this machine has no C and C++ compiler."""
    for variable in _COMPILERS:
        _compiler(variable, what)


def compiler(variable: str) -> list[str]:
    """The command of the C (`CC`) or C++ (`CXX`) compiler. Raises WheelhouseError."""
    return _compiler(variable, "the engine")


def compiler_version() -> str:
    """Which compilers build here, in their own words. Raises WheelhouseError."""
    return "\n".join(run([*compiler(variable), "--version"]).partition("\n")[0] for variable in _COMPILERS)


def _compiler(variable: str, what: str) -> list[str]:
    command = shlex.split(os.environ.get(variable, ""))
    if command and shutil.which(command[0]):
        return command
    if command:
        raise WheelhouseError(f"{variable} is {command[0]!r}, which is not there; unset it, or name another compiler")
    found = next((path for name in _COMPILERS[variable] if (path := shutil.which(name))), None)
    if found is None:
        raise WheelhouseError(
            f"{what} has to be built and there is no C++ compiler; install one "
            "(Debian and Ubuntu: `apt install build-essential`, RHEL: `dnf install gcc-c++`)"
        )
    return [found]


def run(command: Sequence[str]) -> str:
    """What a command prints. Raises WheelhouseError with the end of it where it fails or cannot be started."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # What is read of it must not depend on who runs it.
            env={**os.environ, "LC_ALL": "C"},
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise WheelhouseError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        raise WheelhouseError(f"{command[0]} failed with exit status {done.returncode}:\n{tail}")
    return done.stdout


def run_ninja(command: list[str], what: str, then: str = "") -> None:
    """Run it and show how far it is. Raises WheelhouseError with the end of what it printed.

    `what` is built; `then` says what comes afterwards.
    """
    lines: list[str] = []
    # Set by the user, it would change the lines that progress is read from.
    environment = {name: value for name, value in os.environ.items() if name != "NINJA_STATUS"}
    with (
        Progress(f"{what}: compiling", then) as progress,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment, "LC_ALL": "C"},
            text=True,
            errors="replace",
        ) as ninja,
    ):
        for line in ninja.stdout or ():
            lines = [*lines[-60:], line]
            if step := _STEP.match(line):
                progress.show(int(step[1]), int(step[2]))
    if ninja.returncode:
        raise WheelhouseError(f"ninja failed with exit status {ninja.returncode}:\n{''.join(lines[-40:])}")
