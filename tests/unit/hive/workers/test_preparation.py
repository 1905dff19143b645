"""What a worker has to have before its process is started."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from llama_orch.contract.hive import SpawnRequest
from llama_orch.hive.workers import preparation
from llama_orch.hive.workers.records import WorkerRecord


@pytest.mark.parametrize(
    ("model_ref", "path", "taken"),
    [
        ("hf:org/repo", "/models/models--org--repo/snapshots/c/m.gguf", True),
        ("hf:org/repo", "/models/../etc/m.gguf", False),
        ("hf:org/repo", "/etc/m.gguf", False),
        ("file:/home/m.gguf", "/home/m.gguf", True),
        ("file:/home/m.gguf", "/etc/m.gguf", False),
    ],
)
def test_a_record_names_no_model_but_the_one_that_was_asked_for(model_ref: str, path: str, taken: bool):
    request = SpawnRequest(model_ref=model_ref, backend="cpu")
    record = WorkerRecord(id="one", request=request, created_at=datetime(2026, 1, 2, tzinfo=UTC), model_path=path)
    assert preparation.path_of_record(record, Path("/models")) == (Path(path) if taken else None)
