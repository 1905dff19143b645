from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from llama_orch.wheelhouse import engine_lock
from llama_orch.wheelhouse.engine import Engine
from llama_orch.wheelhouse.engine_lock import LockedEngine, engine_for
from llama_orch.wheelhouse.wheel_file import Wheel, metadata

DIGEST = "0" * 64
MANYLINUX = "py3-none-manylinux_2_17_x86_64"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    locks = tmp_path / "checkout" / "agent" / "requirements"
    locks.mkdir(parents=True)
    (locks / "hive.txt").write_text(f"llama-cpp-python==9.1 --hash=sha256:{DIGEST}\n")
    (locks / "build.txt").write_text(f"cmake==1 --hash=sha256:{DIGEST}\nninja==1 --hash=sha256:{DIGEST}\n")
    (locks / "engine.txt").write_text("# nothing is published\n\n")
    return tmp_path / "checkout"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip finds wheels, and nowhere else."""
    folder = tmp_path / "published"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def publish(folder: Path) -> str:
    """Put an engine there and answer its line for the lock."""
    name, version = "llama-cpp-python", "9.1"
    wheel = Wheel(name, version, metadata(name, version, []), {}, {"llama_cpp/__init__.py": ""}).write(
        folder, MANYLINUX
    )
    return f"llama-cpp-python==9.1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


def lock(project: Path, text: str) -> None:
    (project / "agent" / "requirements" / "engine.txt").write_text("# one is\n" + text)


def test_a_wheel_that_the_lock_names_is_taken_and_kept(project: Path, published: Path, tmp_path: Path) -> None:
    lock(project, publish(published))

    found = engine_for(project, tmp_path / "cache")

    assert isinstance(found, LockedEngine)
    assert found.wheel().name == f"llama_cpp_python-9.1-{MANYLINUX}.whl"
    for wheel in published.iterdir():
        wheel.unlink()
    assert engine_for(project, tmp_path / "cache").key == found.key


@pytest.mark.parametrize("fault", ["gone", "another hash"])
def test_one_that_cannot_be_had_is_compiled_and_that_is_said(
    project: Path, published: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    line = publish(published)
    if fault == "gone":
        next(published.iterdir()).unlink()
    lock(project, line if fault == "gone" else f"llama-cpp-python==9.1 --hash=sha256:{DIGEST}\n")

    assert isinstance(engine_for(project, tmp_path / "cache"), Engine)
    said = capfd.readouterr().err
    assert "engine.txt names cannot be had, so it is compiled" in said
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_without_a_locked_wheel_pip_is_not_asked(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_lock, "run_pip", lambda *_, **__: pytest.fail("pip was asked"))

    assert isinstance(engine_for(project, tmp_path), Engine)
    (project / "agent" / "requirements" / "engine.txt").unlink()
    assert isinstance(engine_for(project, tmp_path), Engine)
