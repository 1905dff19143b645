from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_orch.contract.process import WorkerSpec
from llama_orch.web import landlock
from llama_orch.web.landlock import Access
from llama_orch.worker import confinement
from llama_orch.worker.llama import model_file


def a_spec(model: Path, **order: Any) -> WorkerSpec:
    values = {"worker_id": "w", "model_path": str(model), "model_name": "m", "host": "::1", "port": 9, "backend": "cpu"}
    return WorkerSpec.model_validate({**values, **order})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A worker's own, beside another's."""
    own = tmp_path / "state" / "workers" / "w"
    own.mkdir(parents=True)
    (own.parent / "other").mkdir()
    return own


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """As in the hub's cache: a name that leads to the file."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "sha").write_bytes(b"GGUF")
    (tmp_path / "blobs" / "other").write_bytes(b"GGUF")
    (tmp_path / "model.gguf").symlink_to("blobs/sha")
    return tmp_path / "model.gguf"


def can(allowed: list[tuple[Path, Access]], path: Path) -> Access:
    """What is left to do with a path."""
    found = Access(0)
    for root, access in allowed:
        if path.is_relative_to(root.resolve()):
            found |= access
    return found


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_the_model_is_read_and_what_lies_beside_it_is_not(folder: Path, model: Path, backend: str):
    allowed = confinement.allowed(a_spec(model, backend=backend), folder)
    assert can(allowed, model.resolve()) == Access.READ_FILE
    assert can(allowed, model.resolve().with_name("other")) == Access(0)
    assert can(allowed, model.parent) == Access(0)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_its_order_is_read_and_its_temporary_folder_written_alone(folder: Path, model: Path, backend: str):
    allowed = confinement.allowed(a_spec(model, backend=backend), folder)
    assert can(allowed, folder / "spec.json") == Access.READ_FILE
    assert Access.WRITE_FILE in can(allowed, folder / "tmp" / "failure.json")
    for path in (folder, folder / "record.json", folder.parent, folder.parent / "other" / "spec.json"):
        assert can(allowed, path) == Access(0)
    for path in ("/etc/llama-orch/secrets/api-token", "/run/credentials/x", "/etc/shadow", "/home", "/proc/1/environ"):
        assert can(allowed, Path(path)) == Access(0)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_nothing_is_run_and_nothing_special_is_made(folder: Path, model: Path, backend: str):
    never = (
        Access.EXECUTE | Access.MAKE_SYM | Access.MAKE_FIFO | Access.MAKE_SOCK | Access.MAKE_CHAR | Access.MAKE_BLOCK
    )
    for path, access in confinement.allowed(a_spec(model, backend=backend), folder):
        assert not access & (never | Access.REFER), path


def test_only_cuda_gets_what_the_driver_needs(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/hive")
    cache = Path("/home/hive/.nv/ComputeCache/index")
    on_cpu = confinement.allowed(a_spec(model), folder)
    assert can(on_cpu, cache) == can(on_cpu, Path("/dev/dri/card0")) == Access(0)
    on_gpu = confinement.allowed(a_spec(model, backend="cuda"), folder)
    assert Access.WRITE_FILE in can(on_gpu, cache)
    assert can(on_gpu, Path("/dev/dri/card0")) == confinement.DEVICE
    assert can(on_gpu, Path("/dev/sda")) == Access(0)
    # cuInit fails where CUDA cannot name the thread that it starts.
    name = Path(f"/proc/{os.getpid()}/task/1/comm")
    assert can(on_gpu, name) & (Access.WRITE_FILE | Access.TRUNCATE) == Access.WRITE_FILE | Access.TRUNCATE
    assert not can(on_cpu, name) & Access.WRITE_FILE


def test_a_folder_that_holds_the_workers_stays_closed(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    allowed = confinement.allowed(a_spec(model), folder)
    assert can(allowed, folder.parent / "other") == Access(0)
    assert f"{tmp_path} stays closed" in caplog.text


def test_python_and_its_libraries_are_read(folder: Path, model: Path):
    allowed = confinement.allowed(a_spec(model), folder)
    for module in (sys.modules["pydantic"], sys.modules["json"], confinement):
        assert can(allowed, Path(str(module.__file__)).resolve()) == confinement.READ


def test_all_parts_of_a_model_are_found_and_no_other_file(tmp_path: Path):
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for name in (*names, "m-00001-of-00003.gguf", "n-00001-of-00002.gguf", "m.gguf"):
        (tmp_path / name).touch()
    assert [one.name for one in model_file.parts(tmp_path / names[0])] == names
    assert model_file.parts(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]
    assert model_file.parts(tmp_path / "gone" / names[0]) == [tmp_path / "gone" / names[0]]


def never(*_: object) -> None:
    raise AssertionError("this process was to stay as it is")


@pytest.mark.parametrize(("confined", "abi", "said"), [(False, 7, "confine_workers"), (True, 0, "no Landlock")])
def test_where_it_cannot_be_confined_it_says_so(  # noqa: PLR0917
    folder: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    confined: bool,
    abi: int,
    said: str,
):
    monkeypatch.setattr(landlock, "abi", lambda: abi)
    monkeypatch.setattr(landlock, "restrict", never)
    assert not confinement.confine(a_spec(model, confined=confined), folder)
    assert said in caplog.text


def test_what_the_kernel_refuses_ends_no_worker(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: object) -> None:
        raise OSError(7, "Argument list too long")

    monkeypatch.setattr(landlock, "abi", lambda: 7)
    monkeypatch.setattr(landlock, "restrict", refuse)
    monkeypatch.setattr(confinement, "_threads", lambda: 1)
    assert not confinement.confine(a_spec(model), folder)
    assert "Argument list too long" in caplog.text


def test_with_a_second_thread_it_is_not_called_confined(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(landlock, "abi", lambda: 7)
    monkeypatch.setattr(landlock, "restrict", never)
    monkeypatch.setattr(confinement, "_threads", lambda: 2)
    assert not confinement.confine(a_spec(model), folder)
    assert "2 threads" in caplog.text
