"""What a reference means on a hive that has files of its repository: never a question to the hub."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from llama_orch.contract import model_ref as refs
from llama_orch.contract.devices import MemoryInfo
from llama_orch.contract.errors import Conflict, DoesNotFit
from llama_orch.contract.hive import DownloadStatus
from llama_orch.hive.devices import machine
from llama_orch.hive.models import files as model_files
from llama_orch.hive.models.downloads import service
from llama_orch.hive.models.downloads.records import DownloadRecord, DownloadRecords, now
from llama_orch.hive.models.downloads.service import Downloads
from llama_orch.hive.models.hub.description import HubFile, Resolved
from llama_orch.hive.problems import Failed
from llama_orch.hive.settings import HiveSettings
from tests.support.memory_hive import MemorySource
from tests.unit.hive.models.test_cache import add

Q8, Q5 = "m-Q8_0.gguf", "sub/m-Q5_K_M.gguf"


@pytest.fixture
def hub() -> MemorySource:
    """One that gives nothing."""
    source = MemorySource()
    source.failure = Failed("hub_unreachable", "the hub cannot be reached", retry=True)
    return source


@pytest.fixture
def known(tmp_path: Path, hub: MemorySource) -> Downloads:
    """The downloads of a hive with two files of a branch and, as v1, an older one."""
    cache = tmp_path / "models"
    add(cache, "c" * 40, Q8, "8" * 64)
    add(cache, "c" * 40, Q5, "5" * 64)
    add(cache, "d" * 40, "old.gguf", "e" * 64, ref="v1")
    return Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), hub)


@pytest.mark.parametrize(
    ("reference", "file", "explained"),
    [
        ("hf:org/repo", Q5, True),
        ("hf:org/repo@main", Q5, True),
        (f"hf:org/repo@{'c' * 40}", Q5, True),
        ("hf:org/repo@v1", "old.gguf", False),
        (f"hf:org/repo::file={Q8}", Q8, False),
        (f"hf:org/repo@main::file={Q8}", Q8, False),
    ],
)
async def test_what_is_here_is_taken(known: Downloads, hub: MemorySource, reference: str, file: str, explained: bool):
    download = await known.request(refs.parse(reference), "rest")
    assert download.ready and known.path_of(download.record).is_file()
    assert download.view().filename == file
    assert (download.view().chosen_because is not None) == explained
    assert await known.request(refs.parse(reference), "rest") is download
    assert hub.asked == []


async def test_one_file_that_is_here_is_one_download_whatever_it_is_called(known: Downloads, hub: MemorySource):
    named = await known.request(refs.HubRef("org/repo", "v1", "old.gguf"), "rest")
    assert await known.request(refs.HubRef("org/repo", "v1"), "rest") is named
    assert await known.request(refs.HubRef("org/repo", "d" * 40), "rest") is named
    assert hub.asked == []


async def test_a_choice_among_files_that_are_here_is_explained(known: Downloads, hub: MemorySource):
    named = await known.request(refs.HubRef("org/repo", None, Q5), "rest")
    assert named.view().chosen_because is None
    because = (await known.request(refs.HubRef("org/repo"), "rest")).view().chosen_because
    assert because == (
        "of those that are here, there is no Q4_K_M; Q5_K_M is the nearest of: Q5_K_M, Q8_0; name another with ::file="
    )
    assert hub.asked == []


@pytest.mark.parametrize(
    "reference", ["hf:org/repo::file=m-Q4_K_M.gguf", "hf:org/repo@v2", "hf:org/other", f"hf:org/repo@v1::file={Q8}"]
)
async def test_what_is_not_here_is_the_hubs_to_say(known: Downloads, hub: MemorySource, reference: str):
    with pytest.raises(Failed, match="cannot be reached"):
        await known.request(refs.parse(reference), "rest")
    assert hub.asked == [refs.parse(reference)]


async def test_what_is_no_model_is_not_taken_for_one(tmp_path: Path, hub: MemorySource):
    cache = tmp_path / "models"
    add(cache, "c" * 40, "mmproj-F16.gguf", "8" * 64)
    known = Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), hub)
    with pytest.raises(Failed):
        await known.request(refs.HubRef("org/repo"), "rest")
    assert len(hub.asked) == 1


async def test_a_draft_alone_is_the_hubs_to_judge_and_is_taken_where_that_is_silent(tmp_path: Path, hub: MemorySource):
    cache = tmp_path / "models"
    add(cache, "c" * 40, "m-draft-Q4_K_M.gguf", "8" * 64)
    known = Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), hub)
    download = await known.request(refs.HubRef("org/repo"), "rest")
    assert (download.ready, download.view().filename, len(hub.asked)) == (True, "m-draft-Q4_K_M.gguf", 1)
    add(cache, "c" * 40, "m-Q8_0.gguf", "9" * 64)
    known = Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), hub)
    assert (await known.request(refs.HubRef("org/repo"), "rest")).view().filename == "m-Q8_0.gguf"
    assert len(hub.asked) == 1


async def test_what_lies_in_the_cache_under_a_name_that_is_none_of_ours_is_the_hubs_to_say(
    tmp_path: Path, hub: MemorySource
):
    cache = tmp_path / "models"
    add(cache, "c" * 40, "a {{ model }}.gguf", "8" * 64)
    known = Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), hub)
    with pytest.raises(Failed):
        await known.request(refs.HubRef("org/repo"), "rest")
    assert len(hub.asked) == 1


async def test_what_came_of_a_download_whose_record_is_damaged_is_deleted(
    tmp_path: Path, hub: MemorySource, caplog: pytest.LogCaptureFixture
):
    cache, state = tmp_path / "models", tmp_path / "state" / "downloads"
    blobs = cache / "models--org--repo" / "blobs"
    blobs.mkdir(parents=True)
    state.mkdir(parents=True)
    failed = a_failed_download("a" * 64)
    (state / "d1.json").write_text(failed.model_dump_json())
    for etag in "abc":
        (blobs / f"{etag * 64}.part").write_bytes(b"GGUF")

    def start() -> list[str]:
        Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), hub).start()
        return sorted(path.name[0] for path in blobs.iterdir())

    assert start() == ["a", "b", "c"], "nothing tells that they are of no use"
    (state / "d2.json").write_text("")
    with (blobs / f"{'c' * 64}.part").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert start() == ["a", "c"], "one is of a known download, and another process writes to one"
    assert f"{'b' * 64}.part" in caplog.text


@pytest.fixture
async def going_on(tmp_path: Path) -> AsyncIterator[tuple[Downloads, MemorySource]]:
    """A hive, and a hub whose model never comes; a download's process ends when the test lets it."""
    hub = MemorySource()
    hub.may_end.clear()
    (tmp_path / "models").mkdir()
    settings = HiveSettings(state_dir=tmp_path / "state", models_dir=tmp_path / "models", reserve_disk_bytes=1)
    known = Downloads(settings, hub)
    yield known, hub
    hub.may_end.set()
    await known.stop()


@pytest.mark.parametrize("again", ["hf:org/repo", "hf:org/repo@main", "hf:org/repo::file=m.gguf"])
async def test_who_asks_while_a_download_is_cancelled_gets_a_new_one_after_its_end(
    going_on: tuple[Downloads, MemorySource], tmp_path: Path, again: str
):
    known, hub = going_on
    first = await known.request(refs.parse("hf:org/repo"), "rest")
    part = model_files.parts(tmp_path / "models", cast("Resolved", first.record.model))[0]
    part.parent.mkdir(parents=True)
    part.touch()
    await asyncio.sleep(0)
    cancelling = [asyncio.create_task(known.cancel(first.record.download_id)) for _ in range(3)]
    await asyncio.sleep(0)
    asked = [asyncio.create_task(known.request(refs.parse(again), "rest")) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert first.record.is_open and not any(task.done() for task in asked)
    hub.may_end.set()
    assert {(await task).record.status for task in cancelling} == {DownloadStatus.CANCELLED}
    (second,) = {(await task).record.download_id: await task for task in asked}.values()
    assert second is not first
    assert not part.exists()
    await asyncio.sleep(0)
    assert (second.record.is_open, hub.running) == (True, 1)


async def test_a_download_is_cancelled_at_any_moment(going_on: tuple[Downloads, MemorySource]):
    known, hub = going_on
    hub.may_end.set()
    asking = asyncio.create_task(known.request(refs.parse("hf:org/repo"), "rest"))
    while not known.all():  # noqa: ASYNC110  no event tells of it
        await asyncio.sleep(0)
    (download,) = known.all()
    assert (await known.cancel(download.record.download_id)).record.status is DownloadStatus.CANCELLED
    assert await asking is download


async def test_a_cancelled_download_whose_part_cannot_be_deleted_has_ended(
    going_on: tuple[Downloads, MemorySource], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def drop_parts(*_: object) -> None:
        raise OSError("Read-only file system")

    known, hub = going_on
    hub.may_end.set()
    download = await known.request(refs.parse("hf:org/repo"), "rest")
    monkeypatch.setattr(model_files, "drop_parts", drop_parts)
    assert (await known.cancel(download.record.download_id)).record.status is DownloadStatus.CANCELLED
    assert "Read-only file system" in caplog.text


async def test_what_came_of_a_failed_download_goes_with_its_record(
    going_on: tuple[Downloads, MemorySource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    known, hub = going_on
    hub.may_end.set()
    monkeypatch.setattr(service, "KEEP_ENDED", 1)
    parts: list[Path] = []
    for number, etag in enumerate("bc"):
        parts += a_failed_one_is_kept(tmp_path, f"d{number}", etag * 64)
        parts[-1].parent.mkdir(parents=True, exist_ok=True)
        parts[-1].touch()
    known.start()
    await known.stop()
    assert [part.exists() for part in parts] == [False, True]


async def test_a_cancelled_download_that_does_not_end_is_a_conflict(
    going_on: tuple[Downloads, MemorySource], monkeypatch: pytest.MonkeyPatch
):
    known, _ = going_on
    first = await known.request(refs.parse("hf:org/repo"), "rest")
    await asyncio.sleep(0)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    cancelling = first.cancelling = asyncio.create_task(never())
    monkeypatch.setattr(service, "CANCELLED_S", 0.01)
    with pytest.raises(Conflict, match="is being cancelled"):
        await known.request(refs.parse("hf:org/repo"), "rest")
    cancelling.cancel()
    assert len(known.all()) == 1


async def test_downloads_that_begin_together_do_not_get_the_same_room(
    going_on: tuple[Downloads, MemorySource], monkeypatch: pytest.MonkeyPatch
):
    known, _ = going_on
    room = MemoryInfo(total_bytes=100, available_bytes=8)
    monkeypatch.setattr(machine, "disk", lambda _: room)
    wanted = [known.request(refs.parse(f"hf:org/{name}"), "rest") for name in ("one", "two", "three")]
    found = await asyncio.gather(*wanted, return_exceptions=True)
    assert [type(one) for one in found if isinstance(one, Exception)] == [DoesNotFit] * 2


async def test_what_a_deleted_model_left_goes_but_not_what_a_new_download_writes_to(
    going_on: tuple[Downloads, MemorySource], tmp_path: Path
):
    known, _ = going_on
    a_failed_one_is_kept(tmp_path, "d1", "a" * 64)
    known.start()
    new = await known.request(refs.parse("hf:org/repo"), "rest")
    part = model_files.parts(tmp_path / "models", cast("Resolved", new.record.model))[0]
    part.parent.mkdir(parents=True)
    part.touch()
    await known.forget("hf:org/repo", "m.gguf")
    assert known.all() == [new]
    assert part.exists()


def a_failed_one_is_kept(folder: Path, download_id: str, etag: str) -> list[Path]:
    """Write the record of a failed download, as an earlier agent did; answers where what came of it would be."""
    record = a_failed_download(etag).model_copy(update={"download_id": download_id})
    DownloadRecords(folder / "state" / "downloads").save(record)
    return model_files.parts(folder / "models", cast("Resolved", record.model))


def a_failed_download(etag: str) -> DownloadRecord:
    """A download's record whose model has one file."""
    files = [HubFile(name="m.gguf", size=5, etag=etag)]
    return DownloadRecord(
        download_id="d1",
        model_ref="hf:org/repo",
        asked_filename=None,
        model=Resolved(repo="org/repo", revision="main", commit="c" * 40, filename="m.gguf", files=files),
        status=DownloadStatus.FAILED,
        started_at=now(),
    )
