from __future__ import annotations

import pytest

from llama_orch.contract.process import OUTPUTS_PER_SLOT
from llama_orch.worker.llama import warm_up
from llama_orch.worker.scheduler import Part


@pytest.mark.parametrize(
    ("most", "seconds", "count"),
    [(512, 0.0, 512), (512, 0.001, 512), (512, 0.1, 200), (512, 30.0, 64), (40, 30.0, 40)],
)
def test_a_batch_is_as_full_as_time_allows_and_never_of_few_tokens(most: int, seconds: float, count: int):
    assert warm_up.batch_tokens(most, seconds) == count


def whole(parts: list[Part]) -> dict[int, list[int]]:
    """The tokens of each sequence, whose parts follow on each other."""
    found: dict[int, list[int]] = {}
    for part in parts:
        held = found.setdefault(part.sequence, [])
        assert part.position == len(held) and part.tokens
        held += part.tokens
    return found


def test_one_sequence_reads_it_all_and_gives_some_rows_of_logits():
    parts, _ = warm_up.steps(512, vocabulary=32_000, longest=4096, slots=4, vectors=False)
    assert [len(tokens) for tokens in whole(parts).values()] == [512]
    assert sum(part.rows for part in parts) == warm_up.OUTPUTS <= OUTPUTS_PER_SLOT


def test_no_sequence_gets_more_than_it_may_hold():
    parts, _ = warm_up.steps(500, vocabulary=300, longest=64, slots=8, vectors=False)
    assert [len(tokens) for tokens in whole(parts).values()] == [64] * 7 + [52]
    assert [part.sequence for part in parts if part.rows] == [0]


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize(("count", "vocabulary"), [(512, 150_000), (64, 259), (512, 259), (1, 3)])
def test_the_tokens_are_different_and_from_all_over_the_vocabulary(count: int, vocabulary: int, vectors: bool):
    parts, *_ = warm_up.steps(count, vocabulary=vocabulary, longest=512, slots=1, vectors=vectors)
    (tokens,) = whole(parts).values()
    assert len(tokens) == count and len(set(tokens)) == min(count, vocabulary)
    assert min(tokens) == 0 and vocabulary - 1 - vocabulary // count <= max(tokens) < vocabulary


def test_a_model_that_makes_vectors_gives_one_for_each_token():
    ((part,),) = warm_up.steps(128, vocabulary=1000, longest=128, slots=4, vectors=True)
    assert (part.sequence, part.outputs, part.rows) == (0, "all", 128)


def test_every_slot_draws_at_once():
    _, parts = warm_up.steps(64, vocabulary=1000, longest=64, slots=100, vectors=False)
    assert [(part.sequence, len(part.tokens), part.position, part.rows) for part in parts] == [
        (slot, 1, 0, 1) for slot in range(100)
    ]
