"""How much memory a worker will need, computed before it is started.

The formulas follow what llama.cpp allocates for the context that the worker's engine makes: `n_ctx` is the context per
slot times the slots, `n_seq_max` the slots, each slot with a cache of its own (`kv_unified` off), `n_batch` and
`n_ubatch` 512, caches of F16, flash attention. `tests/integration/test_memory_fit.py` holds them against what llama.cpp
says of itself and against what a worker takes.
"""

from __future__ import annotations

from llama_orch.contract.devices import Backend

from .model_facts import ModelFacts

_MIB = 2**20
_F16, _F32 = 2, 4

# Tokens that the engine computes at once; for a text's vector, all that a slot holds.
BATCH_TOKENS = 512
# For how many of them a slot may want logits in one step, where `echo` and `logprobs` ask for those of its prompt.
OUTPUTS_PER_SLOT = 64
# Whether blocks with a sliding window keep the whole context too, so that a slot's prefix can be used again: `swa_full`
# of llama.cpp's `llama_context_params`, which the engine leaves at its default.
KEEPS_WHOLE_WINDOWS = True
# What llama.cpp rounds a slot's context and a window up to (`llama_context`, `llama_kv_cache_iswa`).
_PADDING = 256

# Python, its libraries and llama.cpp's, the HTTP server: 70 MiB in a worker that serves a model of 2 MB. llama.cpp's
# graphs and its threads' work space: 5 to 12 MiB, more with larger models.
PROCESS_BYTES = 80 * _MIB
# llama.cpp keeps the vocabulary in maps. Fitted to those of Llama 2 and 3, Qwen 2, Gemma 4 and GPT-2, within 15 %.
_BYTES_PER_TOKEN, _BYTES_PER_MERGE = 240, 90
# Each slot's sampler holds a `llama_token_data` for every token of the vocabulary.
_CANDIDATE_BYTES = 12
# What a process takes of a GPU before its first tensor: the CUDA context with its kernels, and cuBLAS' work space.
# 300 to 500 MB, by GPU and driver; a figure of experience, not measured by us.
CUDA_CONTEXT_BYTES = 450 * _MIB


def needed_bytes(
    facts: ModelFacts, slots: int, ctx_per_slot: int, backend: Backend = "cpu", gpu_layers: int | None = None
) -> int:
    """Bytes that a worker takes at most of its device: of memory, or with `cuda` of the GPU's memory.

    On the CPU the weights are the file's own pages, counted once: where llama.cpp lays them out anew for the processor
    (Q4_0, Q4_K and others), the file's pages are read once, and then the kernel may have them back.
    """
    cache, batch = cache_bytes(facts, slots, ctx_per_slot), _batch(facts, slots, ctx_per_slot)
    if backend == "cpu":
        words = facts.vocabulary * (_BYTES_PER_TOKEN + slots * _CANDIDATE_BYTES) + facts.merges * _BYTES_PER_MERGE
        outputs = batch if facts.makes_vectors else min(batch, slots * OUTPUTS_PER_SLOT)
        work = compute_bytes(facts, slots, ctx_per_slot, outputs) + output_bytes(facts, outputs)
        return facts.weights_bytes + cache + work + words + PROCESS_BYTES
    # Blocks are offloaded with their caches, and the output counts as one more: `llama_model_base::load_tensors`.
    # The table of embeddings stays in memory; a model whose output is the same table has a copy on the GPU.
    weights = facts.weights_bytes - (0 if facts.shares_input else facts.input_bytes)
    layers = facts.blocks + 1
    offloaded = layers if gpu_layers is None or gpu_layers < 0 else min(gpu_layers, layers)
    # Taken in full, whether it is used or not; in memory only what was written to is.
    compute = compute_bytes(facts, slots, ctx_per_slot, batch)
    return (weights + cache) * offloaded // layers + compute + CUDA_CONTEXT_BYTES


def cache_bytes(facts: ModelFacts, slots: int, ctx_per_slot: int) -> int:
    """What all slots' tokens and states take. llama.cpp zeroes it at the start, so it is taken from then on.

    Source: `llama_kv_cache`, `llama_kv_cache_iswa`, `llama_memory_recurrent`.
    """
    tokens = facts.cache_bytes_per_token * _cells(ctx_per_slot)
    windows = facts.window_bytes_per_token * _window_cells(facts, slots, ctx_per_slot)
    return slots * (tokens + windows + facts.state_bytes_per_slot)


def compute_bytes(facts: ModelFacts, slots: int, ctx_per_slot: int, outputs: int) -> int:
    """The buffer that a step's intermediate results share: the most of what lives at the same time.

    That is a block's work (its input and the sums around it, and three of its widest results) beside the masks of
    attention, or the output's, logits of `outputs` tokens. llama.cpp plans it so in `llama_context::sched_reserve`; the
    counts of four and three were read off the sizes that it logs for models of many shapes.
    """
    batch = _batch(facts, slots, ctx_per_slot)
    masks = _cells(ctx_per_slot) if facts.has_cache else batch
    if facts.window_bytes_per_token:
        masks += _window_cells(facts, slots, ctx_per_slot)
    in_blocks = batch * (masks * _F16 + (4 * facts.embedding + 3 * facts.widest) * _F32)
    logits = outputs * facts.vocabulary if facts.has_cache else 0
    return max(in_blocks, (logits + 3 * batch * facts.embedding) * _F32)


def output_bytes(facts: ModelFacts, outputs: int) -> int:
    """The buffer in memory from which a step's results are read: `llama_context::output_reserve`.

    It grows to what was wanted most, and has room for logits even where only vectors are wanted.
    """
    return outputs * (facts.vocabulary + (facts.embedding if facts.makes_vectors else 0)) * _F32


def _batch(facts: ModelFacts, slots: int, ctx_per_slot: int) -> int:
    return ctx_per_slot if facts.makes_vectors else min(BATCH_TOKENS, slots * ctx_per_slot)


def _cells(tokens: int) -> int:
    return -(-tokens // _PADDING) * _PADDING


def _window_cells(facts: ModelFacts, slots: int, ctx_per_slot: int) -> int:
    whole = _cells(ctx_per_slot)
    return whole if KEEPS_WHOLE_WINDOWS else _cells(min(whole, facts.window + _batch(facts, slots, ctx_per_slot)))
