"""One self-test of the engine for all hives of the tests: a hive takes over what another found in this boot."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from llama_orch.base import processes
from llama_orch.hive.devices import engine_build
from llama_orch.hive.devices.engine_test import FILE


def _kept() -> Path:
    return Path(tempfile.gettempdir(), f"llama-orch-tests-{processes.boot_id()}-{engine_build.identity()}.json")


def give(state_dir: Path) -> None:
    """Let a hive that was never started find the result; where it fits neither boot nor build, it tests anew."""
    target = state_dir / FILE
    if not target.exists() and _kept().exists():
        state_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(_kept(), target)


def take(state_dir: Path) -> None:
    """Keep what a hive found."""
    if (state_dir / FILE).exists() and not _kept().exists():
        fresh = Path(tempfile.mkdtemp(dir=tempfile.gettempdir())) / FILE
        shutil.copy(state_dir / FILE, fresh)
        fresh.replace(_kept())
        fresh.parent.rmdir()
