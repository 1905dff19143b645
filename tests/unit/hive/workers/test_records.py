from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llama_orch.base import files
from llama_orch.contract.common import Problem
from llama_orch.contract.hive import DownloadStatus, SpawnRequest
from llama_orch.contract.process import SPEC_FILE
from llama_orch.hive.models.downloads.records import DAMAGED, DAMAGED_KEPT, DownloadRecord, DownloadRecords
from llama_orch.hive.models.hub.description import HubFile, Resolved
from llama_orch.hive.models.memory import Needed
from llama_orch.hive.workers.records import RAM, RECORD_FILE, WorkerRecord, WorkerRecords

REQUEST = SpawnRequest(model_ref="hf:a/b@main", backend="cpu", slots=4, name="x", ctx_per_slot=512, origin="inventory")


def a_worker(worker_id: str = "one") -> WorkerRecord:
    return WorkerRecord(
        id=worker_id,
        request=REQUEST,
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        port=8100,
        boot_id="boot",
        restarts=2,
        streak=1,
        last_error=Problem(code="killed", message="by signal 9"),
    )


def test_a_worker_record_comes_back_as_it_was(tmp_path: Path):
    records = WorkerRecords(tmp_path)
    records.save(a_worker())
    assert WorkerRecords(tmp_path).load() == [a_worker()]
    assert (records.folder("one") / RECORD_FILE).stat().st_mode & 0o077 == 0
    records.remove("one")
    assert records.load() == []
    assert not records.folder("one").exists()


def test_what_a_crash_left_is_cleaned_and_the_others_are_read(tmp_path: Path):
    records = WorkerRecords(tmp_path)
    records.save(a_worker())
    records.folder("without-record").mkdir()
    records.folder("damaged").mkdir()
    (records.folder("damaged") / RECORD_FILE).write_text('{"id": "dam')
    assert [record.id for record in records.load()] == ["one"]
    assert not records.folder("without-record").exists()
    assert records.folder("damaged").exists(), "its process may live: the record is kept for a person to look at"
    assert records.left_alone == {"damaged"}


@pytest.mark.parametrize("text", ["", '{"id": "o', "null", "[]", "\0" * 400, a_worker("other").model_dump_json()])
def test_a_damaged_record_is_made_anew_from_the_order(tmp_path: Path, text: str):
    records = WorkerRecords(tmp_path)
    records.save(a_worker())
    order = {"worker_id": "one", "record": a_worker().model_dump(mode="json")}
    (records.folder("one") / SPEC_FILE).write_text(json.dumps(order))
    (records.folder("one") / RECORD_FILE).write_text(text)
    (record,) = records.load()
    assert record.last_error is not None
    assert record.last_error.code == "record_damaged"
    assert record.model_copy(update={"last_error": a_worker().last_error}) == a_worker()
    assert records.load() == [record], "it is whole again"
    assert records.left_alone == set()


@pytest.mark.parametrize(
    ("changed", "same"),
    [({}, True), ({"origin": "rest"}, True), ({"slots": 5}, False), ({"ctx_per_slot": None}, False)],
)
def test_same_spec(changed: dict[str, object], same: bool):
    assert a_worker().same_spec(REQUEST.model_copy(update=changed)) is same


def on_gpus(**fields: object) -> SpawnRequest:
    return SpawnRequest.model_validate({"model_ref": "hf:a/b", "backend": "cuda", **fields})


@pytest.mark.parametrize(
    ("first", "other", "same"),
    [
        ({}, {"device": 0}, True),
        ({"device": 1}, {"devices": [1]}, True),
        ({"devices": [0, 1]}, {"devices": [0, 1], "split_mode": "layer"}, True),
        ({"devices": [0, 1]}, {"devices": [1, 0]}, False),
        ({"devices": [0, 1]}, {"devices": [0, 1], "split_mode": "row"}, False),
        ({"devices": [0, 1]}, {"devices": [0, 1], "tensor_split": [1, 1]}, False),
    ],
)
def test_the_same_devices_in_other_words_are_the_same(first: dict[str, object], other: dict[str, object], same: bool):
    record = a_worker().model_copy(update={"request": on_gpus(**first)})
    assert record.same_spec(on_gpus(**other)) is same


def test_what_was_promised_is_known_for_each_memory():
    record = a_worker()
    record.promise(Needed([7]))
    assert (record.promised(), record.memory_estimated_bytes) == ({RAM: 7}, 7)
    assert record.promised(serving=True) == {RAM: 7}, "its file's pages never count as taken"
    record.device_uuids = ["GPU-1", "GPU-0"]
    record.promise(Needed([5, 3], host=2))
    assert (record.promised(), record.memory_estimated_bytes) == ({"GPU-1": 5, "GPU-0": 3, RAM: 2}, 8)
    assert record.promised(serving=True) == {RAM: 2}
    record.sharing_uuids = ["GPU-0"]
    assert record.promised() == {"GPU-1": 5, RAM: 5}
    assert record.promised(serving=True) == {RAM: 2}


def test_a_download_record_comes_back_as_it_was(tmp_path: Path):
    model = Resolved(
        repo="a/b",
        revision="main",
        commit="c" * 40,
        filename="m.gguf",
        files=[HubFile(name="m.gguf", size=5, etag="e" * 40)],
    )
    record = DownloadRecord(
        download_id="d1",
        model_ref="hf:a/b",
        asked_filename=None,
        model=model,
        status=DownloadStatus.VERIFYING,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    records = DownloadRecords(tmp_path / "downloads")
    records.save(record)
    assert records.load() == [record]
    assert record.is_open
    assert records.damaged == 0


def test_a_damaged_download_record_is_set_aside_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    records = DownloadRecords(tmp_path)
    (tmp_path / ".d1.json.4711.tmp").touch()
    for number in range(DAMAGED_KEPT + 3):
        (tmp_path / f"half{number}.json").write_text('{"download_id": "ha')
        assert records.load() == []
        assert (tmp_path / f"half{number}.json{DAMAGED}").read_text() == '{"download_id": "ha'
    assert "half7.json" in caplog.text
    assert records.damaged == DAMAGED_KEPT + 3
    assert len(list(tmp_path.iterdir())) == DAMAGED_KEPT


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "record.json"
    files.write_text(path, '"old"')

    def cut(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(files.os, "fsync", cut)
    with pytest.raises(OSError, match="power cut"):
        files.write_text(path, '"new"')
    assert files.read_json(path) == "old"
    path.write_text("")
    assert files.read_json(path) is None
    assert files.read_json(tmp_path / "missing") is None


def a_download(**model: object) -> dict[str, object]:
    """A record as a hand may make it."""
    known = {"repo": "a/b", "revision": "main", "commit": "c" * 40, "filename": "m.gguf"}
    files = [{"name": "m.gguf", "size": 5, "etag": "e" * 64}]
    return {
        "download_id": "d1",
        "model_ref": "hf:a/b",
        "asked_filename": None,
        "model": {**known, "files": files, **model},
        "started_at": "2026-01-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"repo": "../../etc"},
        {"repo": "a/.."},
        {"repo": "a/b/c"},
        {"commit": "../../../tmp"},
        {"commit": "main"},
        {"revision": "../../x"},
        {"revision": "/etc/x"},
        {"filename": "../m.gguf"},
        {"filename": "/etc/m.gguf"},
        {"filename": "a/../../m.gguf"},
        {"filename": "m.bin"},
        {"files": []},
        {"files": [{"name": "m.gguf", "size": 5, "etag": "../../../../tmp/x"}]},
        {"files": [{"name": "m.gguf", "size": 5, "etag": "E" * 64}]},
        {"files": [{"name": "m.gguf", "size": 5, "etag": "e" * 64 + "\n"}]},
        {"files": [{"name": "../m.gguf", "size": 5, "etag": "e" * 64}]},
        {"files": [{"name": "m.gguf", "size": -1, "etag": "e" * 64}]},
        {"files": [{"name": "m.gguf", "size": 2**63, "etag": "e" * 64}]},
        {"files": [{"name": "m.gguf", "size": 5, "etag": "e" * 64}] * 1001},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_a_download_record_that_names_what_is_no_name_is_dropped(tmp_path: Path, wrong: dict[str, object]):
    records = DownloadRecords(tmp_path)
    (tmp_path / "d1.json").write_text(json.dumps(a_download()))
    assert len(records.load()) == 1
    (tmp_path / "d1.json").write_text(json.dumps(a_download(**wrong)))
    assert records.load() == []
    assert not (tmp_path / "d1.json").exists()


def test_a_record_is_of_what_its_file_is_named_after(tmp_path: Path):
    records = DownloadRecords(tmp_path / "downloads")
    for name, download_id in (("d2", "d1"), ("d3", "../../x")):
        (tmp_path / "downloads" / f"{name}.json").write_text(json.dumps(a_download() | {"download_id": download_id}))
    assert records.load() == []
    workers = WorkerRecords(tmp_path)
    for name, worker_id in (("two", "one"), ("three", "../../x")):
        workers.folder(name).mkdir()
        record = a_worker().model_dump(mode="json") | {"id": worker_id}
        (workers.folder(name) / RECORD_FILE).write_text(json.dumps(record))
    assert workers.load() == []


def test_what_a_worker_may_have_planted_is_neither_followed_nor_waited_for(tmp_path: Path):
    (tmp_path / "target.json").write_text("{}")
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "target.json")
    (tmp_path / "folder.json").mkdir()
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "deep.json").write_text("[" * 500_000)
    for name in ("fifo", "link", "folder", "huge", "deep"):
        assert files.read_json(tmp_path / f"{name}.json") is None, name
    with pytest.raises(OSError, match="larger than"):
        files.read_bytes(tmp_path / "huge.json")
    assert files.read_json(tmp_path / "target.json") == {}
