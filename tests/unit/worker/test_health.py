"""What a worker says of itself where it serves nobody."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llama_orch.contract.process import WorkerSpec
from llama_orch.worker.metrics import Metrics
from llama_orch.worker.service import Service

SPEC = WorkerSpec(
    worker_id="w1", model_path="/m.gguf", model_name="m", host="127.0.0.1", port=1, backend="cpu", slots=1
)


@pytest.mark.parametrize(
    ("stuck", "texts", "grammars", "reason"),
    [
        (0.0, 0.0, 0.0, None),
        (90.0, 0.0, 0.0, "one step for 90 s"),
        (0.0, 12.0, 0.0, "texts read.*12 s"),
        (0.0, 0.0, 15.0, "grammars and schemas read.*15 s"),
    ],
)
def test_a_worker_that_lets_nobody_through_is_not_idle(stuck: float, texts: float, grammars: float, reason: str | None):
    service = Service(SPEC, Metrics(CollectorRegistry()), lambda: pytest.fail("nothing is loaded here"))
    loaded: Any = SimpleNamespace(
        info=SimpleNamespace(context=512),
        batcher=SimpleNamespace(
            stuck_seconds=stuck,
            silent_seconds=stuck,
            longest_step_seconds=0.5,
            ask=lambda: None,
            generated=0,
            scheduler=SimpleNamespace(held_tokens=0),
        ),
        texts=SimpleNamespace(stalled_seconds=texts),
        grammars=SimpleNamespace(stalled_seconds=grammars),
    )
    service._loaded = loaded
    health = service.health()
    if reason is None:
        assert (health.status, health.reason) == ("idle", None)
    else:
        assert health.status == "overloaded"
        assert re.search(reason, health.reason or "")
    service._closing = True
    assert service.health().status == "draining"
