from __future__ import annotations

from dataclasses import replace

import pytest

from llama_orch.contract.hive import SpawnRequest
from llama_orch.hive.models import memory
from llama_orch.hive.models.facts import ModelFacts
from llama_orch.hive.models.memory import CUDA_CONTEXT_BYTES, PROCESS_BYTES, Needed, gpu_bytes, host_bytes

FACTS = ModelFacts(
    architecture="llama",
    file_bytes=1_010_000,
    weights_bytes=1_000_000,
    context_length=8192,
    blocks=9,
    embedding=64,
    vocabulary=1000,
    merges=500,
    widest=256,
    input_bytes=100_000,
    last_bytes=90_000,
    cache_bytes_per_token=128,
)


def test_a_worker_on_the_cpu_needs_the_sum_of_its_parts():
    cache = 2 * 4096 * 128
    # A block's work and the mask of attention are more than 128 tokens' logits.
    compute = 512 * (4096 * 2 + (4 * 64 + 3 * 256) * 4)
    outputs = 2 * 64 * 1000 * 4
    words = 1000 * (240 + 2 * 12) + 500 * 90
    assert host_bytes(FACTS, 2, 4096, 0) == 1_000_000 + cache + compute + outputs + words + PROCESS_BYTES


def test_context_is_rounded_up_as_llama_cpp_does():
    assert memory.cache_bytes(FACTS, 1, 256) == 256 * 128
    assert memory.cache_bytes(FACTS, 1, 257) == 512 * 128
    assert memory.cache_bytes(FACTS, 3, 64) == 3 * 256 * 128


def test_states_count_for_slots_and_not_for_tokens():
    facts = replace(FACTS, cache_bytes_per_token=0, state_bytes_per_slot=1000)
    assert memory.cache_bytes(facts, 4, 256) == memory.cache_bytes(facts, 4, 8192) == 4000


def test_a_window_keeps_less_where_it_is_not_kept_whole(monkeypatch: pytest.MonkeyPatch):
    facts = replace(FACTS, window_bytes_per_token=640, window=512)
    assert memory.cache_bytes(facts, 2, 4096) == 2 * 4096 * (128 + 640)
    monkeypatch.setattr(memory, "KEEPS_WHOLE_WINDOWS", False)
    assert memory.cache_bytes(facts, 2, 4096) == 2 * (4096 * 128 + 1024 * 640)
    assert memory.cache_bytes(facts, 2, 700) == 2 * 768 * (128 + 640), "no more than the context"


def test_a_large_vocabulary_outweighs_the_blocks_work():
    facts = replace(FACTS, vocabulary=100_000)
    assert memory.compute_bytes(facts, 1, 4096, 64) == (64 * 100_000 + 3 * 512 * 64) * 4
    assert memory.output_bytes(facts, 64) == 64 * 100_000 * 4
    # All slots may want logits at once, but no more than a step has tokens.
    more = host_bytes(facts, 9, 4096, 0) - host_bytes(facts, 8, 4096, 0)
    assert more == 4096 * 128 + 100_000 * 12


def test_vectors_take_the_whole_text_at_once():
    facts = replace(FACTS, makes_vectors=True, has_cache=False, cache_bytes_per_token=0)
    compute = 4096 * (4096 * 2 + (4 * 64 + 3 * 256) * 4)
    outputs = 4096 * (1000 + 64) * 4
    words = 1000 * (240 + 12) + 500 * 90
    assert host_bytes(facts, 1, 4096, 0) == 1_000_000 + compute + outputs + words + PROCESS_BYTES


CACHE = 4096 * 128
FIXED = memory.compute_bytes(FACTS, 1, 4096, 512) + CUDA_CONTEXT_BYTES
# What is neither the table of embeddings nor the output, and what of it a block has.
BLOCKS, BLOCK = 810_000, 90_000


@pytest.mark.parametrize(("layers", "blocks"), [(None, 9), (-1, 9), (10, 9), (99, 9), (5, 4), (1, 0)])
def test_a_gpu_holds_the_output_the_last_blocks_and_its_own_context(layers: int | None, blocks: int):
    held = 90_000 + BLOCK * blocks + CACHE * blocks // 9
    assert gpu_bytes(FACTS, 1, 4096, layers) == [held + FIXED]
    assert gpu_bytes(FACTS, 1, 4096, 0) == [FIXED]


# What llama.cpp keeps in memory beside a model: a block's work, 64 tokens' logits, the vocabulary, the process.
HOST_FIXED = memory.compute_bytes(FACTS, 1, 4096, 64) + 64 * 1000 * 4 + 1000 * (240 + 12) + 500 * 90 + PROCESS_BYTES


@pytest.mark.parametrize(
    ("layers", "blocks", "output"), [(None, 0, 0), (-1, 0, 0), (99, 0, 0), (5, 5, 0), (1, 9, 0), (0, 9, 90_000)]
)
def test_what_is_not_on_the_gpu_is_in_memory(layers: int | None, blocks: int, output: int):
    held = 100_000 + BLOCK * blocks + output + CACHE - CACHE * (9 - blocks) // 9
    assert host_bytes(FACTS, 1, 4096, layers) == held + HOST_FIXED


def test_a_worker_on_gpus_needs_memory_beside_and_one_on_the_cpu_needs_nothing_else():
    def needed(**fields: object) -> Needed:
        request = SpawnRequest.model_validate({"model_ref": "hf:a/b", **fields})
        return memory.of_worker(FACTS, request, 4096, None)

    assert needed(backend="cpu") == Needed([host_bytes(FACTS, 1, 4096, 0)])
    assert needed(backend="cuda", gpu_layers=0) == Needed([FIXED], host=host_bytes(FACTS, 1, 4096, 0))
    assert needed(backend="cuda").host == 100_000 + HOST_FIXED


def test_before_the_header_is_here_the_file_counts_where_its_weights_will_be():
    def needed(split: list[float] | None = None, **fields: object) -> Needed:
        return memory.of_weights(1000, SpawnRequest.model_validate({"model_ref": "hf:a/b", **fields}), split)

    assert needed(backend="cpu") == needed(backend="cuda") == Needed([1000])
    assert needed(backend="cuda", devices=[0, 1], split=[0.75, 0.25]) == Needed([750, 250])
    assert needed(backend="cuda", gpu_layers=0) == Needed([0], host=1000)


def test_an_output_that_is_the_table_of_embeddings_is_on_the_gpu():
    shared = replace(FACTS, shares_input=True, last_bytes=100_000)
    assert gpu_bytes(shared, 1, 4096, None) == [900_000 + 100_000 + CACHE + FIXED]
    assert host_bytes(shared, 1, 4096, None) == 100_000 + HOST_FIXED, "and in memory as well"


def test_layers_go_to_the_gpus_as_llama_cpp_deals_them_out():
    # Ten layers, of which the first seven are below three quarters, three of them on the second GPU; the last is the
    # output. Each GPU works on four batches at once.
    first, second = gpu_bytes(FACTS, 1, 4096, None, shares=[3, 1], split="layer")
    copies = 3 * (512 * 4096 * 2 + 512 * 64 * 4)
    assert first == 8 * BLOCK + CACHE * 8 // 9 + FIXED + copies
    assert second == 1 * BLOCK + 90_000 + CACHE * 1 // 9 + FIXED + copies
    assert first + second == BLOCKS + 90_000 + CACHE * 8 // 9 + CACHE // 9 + 2 * (FIXED + copies)


def test_a_gpu_that_gets_no_layer_still_has_its_context():
    first, second = gpu_bytes(FACTS, 1, 4096, 2, shares=[1, 0], split="layer")
    assert (first, second) == (90_000 + BLOCK + CACHE // 9 + FIXED, FIXED)


def test_rows_are_dealt_out_by_share_and_caches_by_block():
    first, second = gpu_bytes(FACTS, 1, 4096, None, shares=[0.5, 0.5], split="row")
    assert first == 450_000 + CACHE * 5 // 9 + FIXED
    assert second == 450_000 + CACHE * 4 // 9 + FIXED
