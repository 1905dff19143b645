"""What a download makes of bytes that were there before, from a hub that speaks the real hub's protocol."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_orch.contract.model_ref import HubRef
from llama_orch.hive.models import cache as model_cache
from llama_orch.hive.models.hub import hub
from llama_orch.hive.models.hub.description import FetchOrder
from llama_orch.hive.problems import Failed
from tests.support.hub.server import Faults, Hub

REPO, NAME = "org/letters-GGUF", "m.gguf"
CONTENT = os.urandom(1_000_000)


@pytest.fixture
def served() -> Iterator[Hub]:
    with Hub() as running:
        running.add_repo(REPO, {NAME: CONTENT})
        yield running


def order_with(served: Hub, cache: Path, there: bytes) -> tuple[FetchOrder, Path]:
    """A download of which so much is there, and the file that holds it."""
    order = FetchOrder(
        endpoint=served.url, token=None, cache=cache, model=hub.resolve(HubRef(REPO, None, NAME), served.url, None)
    )
    part = model_cache.part_file(cache, REPO, order.model.files[0].etag)
    part.parent.mkdir(parents=True)
    part.write_bytes(there)
    return order, part


def fetched(order: FetchOrder) -> bytes:
    hub.fetch(order, lambda *_: None)
    return (order.cache / "models--org--letters-GGUF" / "snapshots" / order.model.commit / NAME).read_bytes()


@pytest.mark.parametrize("size", [400_000, len(CONTENT)])
def test_a_part_that_was_damaged_is_downloaded_again_from_its_beginning(served: Hub, tmp_path: Path, size: int):
    order, part = order_with(served, tmp_path, b"\0" * size)
    assert fetched(order) == CONTENT
    assert [body.first_byte for body in served.bodies(f"{REPO}/{NAME}")] == ([size, 0] if size < len(CONTENT) else [0])
    assert not part.exists()


def test_a_part_that_is_whole_is_taken_up(served: Hub, tmp_path: Path):
    order, _ = order_with(served, tmp_path, CONTENT[:400_000])
    assert fetched(order) == CONTENT
    assert [body.first_byte for body in served.bodies(f"{REPO}/{NAME}")] == [400_000]


@pytest.mark.parametrize(("there", "tries"), [(b"\0" * 400_000, 2), (b"", 1)])
def test_what_arrives_changed_from_its_beginning_is_a_failure(served: Hub, tmp_path: Path, there: bytes, tries: int):
    order, part = order_with(served, tmp_path, there)
    served.faults = Faults(corrupt=True)
    with pytest.raises(Failed, match="another checksum") as error:
        hub.fetch(order, lambda *_: None)
    assert (error.value.problem.code, error.value.retry) == ("checksum_mismatch", False)
    assert len(served.bodies(f"{REPO}/{NAME}")) == tries
    assert not part.exists()
