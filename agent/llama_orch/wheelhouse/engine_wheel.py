"""The engine as a release publishes it: tagged with the oldest C library that it runs on, and its line for the lock."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from llama_orch.wheelhouse import sources
from llama_orch.wheelhouse.compiler import run
from llama_orch.wheelhouse.engine import Engine
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import sha256
from llama_orch.wheelhouse.pip import say

_TAG = re.compile(r'platform tag[^"]{0,80}"(manylinux_\d+_\d+_x86_64)"')


def release(project: Path, cache: Path, dist: Path) -> Path:
    """Put the wheel for every processor into the folder `dist` and say what the lock would hold.

    Raises WheelhouseError where auditwheel is missing (`make venv` installs it) or grants no manylinux tag.
    """
    built = Engine(project, cache).wheel()
    platform = _platform(built)
    dist.mkdir(parents=True, exist_ok=True)
    wheel = _tagged(Path(shutil.copy2(built, dist)), platform)
    say(
        f"{wheel.name}: {wheel.stat().st_size / 1e6:.0f} MB. Where pip finds it (an index, or PIP_FIND_LINKS), this "
        "line in agent/requirements/engine.txt saves every user the compiling:"
    )
    say(f"{sources.NAME}=={sources.pinned(project).version} --hash=sha256:{sha256(wheel)}")
    return wheel


def _tagged(wheel: Path, platform: str) -> Path:
    """The same wheel under that tag, in its place."""
    run([sys.executable, "-m", "wheel", "tags", "--remove", f"--platform-tag={platform}", str(wheel)])
    return wheel.with_name(wheel.name.replace("linux_x86_64", platform))


def _platform(wheel: Path) -> str:
    """The lowest tag that auditwheel grants, by the versions of the C library's functions that the libraries use."""
    auditwheel = Path(sys.executable).with_name("auditwheel")
    if not auditwheel.is_file():
        raise WheelhouseError("auditwheel is missing, which says what a wheel runs on; `make venv` installs it")
    said = " ".join(run([str(auditwheel), "show", str(wheel)]).split())
    found = _TAG.search(said)
    if not found:
        raise WheelhouseError(f"auditwheel grants {wheel.name} no manylinux tag: {said[-500:]}")
    return found[1]
