"""What a model may be called, and how large a request may be."""

from __future__ import annotations

from typing import Any

import pytest

from llama_orch.contract.process import WorkerSpec
from llama_orch.worker.requests import bodies, names

MIB = 1024 * 1024


def spec(**more: Any) -> WorkerSpec:
    fields = {"worker_id": "w1", "model_path": "/m.gguf", "model_name": "m.Q4_K_M.gguf", "host": "h", "port": 8100}
    return WorkerSpec.model_validate({**fields, "backend": "cpu", **more})


def test_a_model_is_known_by_its_reference_and_by_its_file_without_its_ending():
    assert names.aliases(spec(model_ref="hf:org/repo@main")) == ["hf:org/repo@main", "org/repo@main", "m.Q4_K_M"]
    assert names.aliases(spec(model_name="m.GGUF")) == ["m"]
    assert names.aliases(spec(model_name="demo")) == []
    # A path on the machine is nobody's business.
    assert names.aliases(spec(model_ref="file:/home/ann/m.Q4_K_M.gguf")) == ["m.Q4_K_M"]


def test_the_fingerprint_changes_with_what_changes_answers():
    first = names.fingerprint(spec())
    assert first.startswith("fp_") and first == names.fingerprint(spec(port=8101, worker_id="w2", slots=4))
    changed = [
        *({"model_name": "other.gguf"}, {"backend": "cuda"}, {"gpu_layers": 3}),
        {"cpu_library": "libggml-cpu-haswell.so"},
    ]
    assert len({first, *(names.fingerprint(spec(**one)) for one in changed)}) == 5


@pytest.mark.parametrize(
    ("context", "expected"), [(64, MIB), (4096, MIB), (131_072, 4 * MIB), (524_288, 16 * MIB), (1_048_576, 16 * MIB)]
)
def test_a_body_holds_what_a_context_does(context: int, expected: int):
    assert bodies.most_bytes(context) == expected == bodies.most_bytes_of(spec(ctx_per_slot=context))
    # What is rendered of it is a little longer.
    assert bodies.scale(context) * 4 * MIB >= expected


def test_a_context_that_nobody_chose_is_the_default_at_most():
    assert bodies.most_bytes_of(spec(ctx_per_slot=None)) == MIB
