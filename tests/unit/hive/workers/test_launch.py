from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llama_orch.base import files
from llama_orch.base.tokens import Token
from llama_orch.contract.hive import SpawnRequest
from llama_orch.hive.problems import Failed
from llama_orch.hive.settings import HiveSettings
from llama_orch.hive.workers import launch
from llama_orch.hive.workers.records import WorkerRecord

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
