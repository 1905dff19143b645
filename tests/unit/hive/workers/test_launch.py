from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llama_orch.base import backoff, files
from llama_orch.base.tokens import Token
from llama_orch.contract.hive import SpawnRequest
from llama_orch.hive.ordered_writes import OrderedWrites
from llama_orch.hive.problems import Failed
from llama_orch.hive.settings import HiveSettings
from llama_orch.hive.workers import launch
from llama_orch.hive.workers.keeper import Surroundings, WorkerKeeper
from llama_orch.hive.workers.process_table import Process
from llama_orch.hive.workers.records import WorkerRecord, WorkerRecords

RECORD = WorkerRecord(
    id="one",
    request=SpawnRequest(model_ref="file:/models/a.gguf", backend="cpu"),
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    port=8100,
    ctx_per_slot=512,
    threads=1,
)


@pytest.mark.parametrize(
    ("number", "passes"),
    [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EIO, True), (errno.ENOENT, False), (errno.EACCES, False)],
)
def test_what_is_in_the_way_of_a_start_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
):
    def write_text(path: Path, text: str) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(files, "write_text", write_text)
    settings = HiveSettings(state_dir=tmp_path, log_dir=tmp_path)
    with pytest.raises(Failed, match=os.strerror(number)) as error:
        launch.start(RECORD, tmp_path, Path("/models/a.gguf"), settings, Token("t" * 16), cpu_library=None)
    assert error.value.retry is passes


async def test_a_worker_whose_disk_is_full_starts_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tries: list[str | None] = []

    async def cpu_library(_: str) -> None:
        return None

    def start(record: WorkerRecord, *_: object, **__: object) -> Any:
        tries.append(record.last_error.code if record.last_error else None)
        if len(tries) < 4:
            raise Failed("cannot_start", "No space left on device", retry=True)
        return SimpleNamespace(poll=lambda: 0)

    async def written_down(*_: object) -> Process:
        return Process(os.getpid(), 1)

    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(launch, "written_down", written_down)
    monkeypatch.setattr(backoff, "delay", lambda _: 0)
    settings = HiveSettings(state_dir=tmp_path, log_dir=tmp_path)
    around = SimpleNamespace(
        settings=settings,
        records=WorkerRecords(tmp_path),
        writes=OrderedWrites(),
        engine=SimpleNamespace(cpu_library=cpu_library),
        inference_token=None,
    )
    keeper = WorkerKeeper(RECORD.model_copy(), cast("Surroundings", around))
    await keeper._launch_once_it_can(Path("/models/a.gguf"))
    assert tries == [None, "cannot_start", "cannot_start", "cannot_start"]
    assert keeper.process == Process(os.getpid(), 1)
    assert not keeper.record.failed
