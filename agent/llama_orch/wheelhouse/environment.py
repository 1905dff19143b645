"""Fills the virtual environment that it runs in: the engine, the locked packages, this checkout."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llama_orch.wheelhouse.engine import Engine
from llama_orch.wheelhouse.engine_lock import LockedEngine, engine_for
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.locks import Target, lock_path, pin_named, pins_for, read_lock
from llama_orch.wheelhouse.pip import exactly, run_pip, say
from llama_orch.wheelhouse.processors import GENERATIONS, Generation, features_here, runnable
from llama_orch.wheelhouse.sources import NAME as ENGINE_NAME

# Bytecode is compiled when a module is first used: here that is quicker than all of it beforehand.
_INSTALL = ("install", "--quiet", "--no-compile", "--no-warn-script-location", "--root-user-action=ignore")
SELF_TEST = "llama_orch.worker.self_test"
SELF_TEST_SECONDS = 300.0


def fill(project: Path, cache: Path, locks: Sequence[str], *, every_processor: bool) -> None:
    """Install the engine, what the locks name and this checkout. Raises WheelhouseError.

    The engine gets the library of this machine's processor, or those of all. One that does not compute here, whatever
    the processor says of itself, is passed over for the next.
    """
    engine = engine_for(project, cache)
    wanted = list(reversed(GENERATIONS)) if every_processor else runnable(features_here())[:1]
    # Fetching, unpacking and compiling leave one processor or the other without work.
    with ThreadPoolExecutor(max_workers=1) as beside:
        packages = beside.submit(_install_packages, project, locks)
        _install_engine(engine, wanted)
        packages.result()
    _prove(engine, wanted)


def _install_packages(project: Path, locks: Sequence[str]) -> None:
    here = Target(f"{sys.version_info.major}.{sys.version_info.minor}", platform.machine())
    found = [pin for name in locks for pin in read_lock(lock_path(project, name)) if pin.name != ENGINE_NAME]
    found.append(pin_named(read_lock(lock_path(project, "build")), "setuptools"))
    # A lock names all that its packages need.
    with exactly(list(dict.fromkeys(pins_for(found, here)))) as these:
        run_pip([*_INSTALL, "--no-deps", *these])
    run_pip([*_INSTALL, "--no-deps", "--no-build-isolation", f"--editable={project}"])


def _install_engine(engine: Engine | LockedEngine, generations: Sequence[Generation]) -> None:
    wheel = engine.wheel(_in_order(generations), then="queen, hive, model and a first answer")
    # One of another build has the same version.
    run_pip([*_INSTALL, "--no-deps", "--force-reinstall", str(wheel)])


def _prove(engine: Engine | LockedEngine, installed: Sequence[Generation]) -> None:
    """Have the engine test itself, and add the next library where all that are installed fail."""
    wanted = list(installed)
    while not _computes():
        further = next((one for one in runnable(features_here()) if one not in wanted), None)
        if further is None or isinstance(engine, LockedEngine):
            raise WheelhouseError(
                f"no library of the engine computes on this processor; `{sys.executable} -m {SELF_TEST}` says how each "
                "failed. Try another compiler (CC=… CXX=… make …)"
            )
        say(f"the engine's library for {wanted[-1].name} does not compute on this machine: adding {further.name}")
        wanted.append(further)
        _install_engine(engine, wanted)


def _computes() -> bool:
    command = [sys.executable, "-m", SELF_TEST]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SELF_TEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise WheelhouseError(f"`{' '.join(command)}` did not end within {SELF_TEST_SECONDS:.0f} s") from None
    for line in done.stdout.splitlines():
        say(f"engine: {line}")
    return done.returncode == 0


def _in_order(generations: Sequence[Generation]) -> list[Generation]:
    return [one for one in GENERATIONS if one in generations]
