"""Where the engine comes from: a wheel that somebody built and the lock names, or else this machine's compiler."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_orch.wheelhouse.engine import Engine
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import filled_once, locked, sha256
from llama_orch.wheelhouse.locks import lock_path
from llama_orch.wheelhouse.pip import run_pip, say
from llama_orch.wheelhouse.processors import GENERATIONS, Generation


@dataclass(frozen=True)
class LockedEngine:
    """A wheel that the lock names: it has the libraries of all generations. See `Engine`."""

    path: Path

    @property
    def key(self) -> str:
        """Names the wheel by its bytes."""
        return f"wheel-{sha256(self.path)}"

    def wheel(self, generations: Sequence[Generation] = GENERATIONS, *, then: str = "") -> Path:
        """The wheel."""
        return self.path


def engine_for(project: Path, cache: Path) -> Engine | LockedEngine:
    """The locked wheel where one is locked and can be had, else a build. Raises WheelhouseError."""
    locked_wheel = _locked_wheel(project, cache)
    return Engine(project, cache) if locked_wheel is None else LockedEngine(locked_wheel)


def _locked_wheel(project: Path, cache: Path) -> Path | None:
    lock = lock_path(project, "engine")
    text = lock.read_text(encoding="utf-8") if lock.is_file() else ""
    if not any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        return None
    folder = cache / "engine" / f"locked-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def fetch(into: Path) -> None:
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--requirement={lock}"]
        with tempfile.TemporaryDirectory(prefix="llama-orch-engine-") as temporary:
            run_pip(["download", *options, f"--dest={temporary}"], fetching="fetching the engine that the lock names")
            for wheel in Path(temporary).glob("*.whl"):
                shutil.move(wheel, into / wheel.name)

    with locked(folder.with_name(folder.name + ".lock"), "another download of the engine"):
        try:
            filled_once(folder, fetch)
        except WheelhouseError as error:
            say(f"the engine's wheel that {lock.name} names cannot be had, so it is compiled: {_reason(error)}")
            return None
    return next(iter(sorted(folder.glob("*.whl"))), None)


def _reason(error: WheelhouseError) -> str:
    """What pip says last; what stands before it is how it looked."""
    return str(error).splitlines()[-1]
