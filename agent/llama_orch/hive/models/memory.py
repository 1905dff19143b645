"""How much memory a worker will need, computed before it is started.

The formulas follow what llama.cpp allocates for the context that the worker's engine makes: `n_ctx` is the context per
slot times the slots, `n_seq_max` the slots, each slot with a cache of its own (`kv_unified` off), `n_batch` and
`n_ubatch` as `contract/process.py` has them, caches of F16, flash attention.
`tests/integration/hive/test_memory_fit.py` holds them against what llama.cpp says of itself and against what a worker
takes.
"""

from __future__ import annotations

import ctypes
import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from llama_orch.contract.devices import SplitMode
from llama_orch.contract.hive import SpawnRequest
from llama_orch.contract.process import KEEPS_WHOLE_WINDOWS, OUTPUTS_PER_SLOT, UBATCH_TOKENS

from .facts import ModelFacts

_MIB = 2**20
_F16, _F32 = 2, 4

# What llama.cpp rounds a slot's context and a window up to (`llama_context`, `llama_kv_cache_iswa`).
_PADDING = 256

# Python, its libraries and llama.cpp's, the HTTP server: 70 MiB in a worker that serves a model of 2 MB. llama.cpp's
# graphs and its threads' work space: 5 to 12 MiB, more with larger models.
PROCESS_BYTES = 80 * _MIB
# llama.cpp keeps the vocabulary in maps. Fitted to those of Llama 2 and 3, Qwen 2, Gemma 4 and GPT-2, within 15 %.
_BYTES_PER_TOKEN, _BYTES_PER_MERGE = 240, 90
# Each slot's sampler holds a `llama_token_data` for every token of the vocabulary.
_CANDIDATE_BYTES = 12
# What a process takes of a GPU before its first tensor: the CUDA context with its kernels, and cuBLAS' work space. On
# an H200 (driver 580, CUDA 13.0) 580 to 620 MiB, by seven models of different shapes; on smaller GPUs it is less.
CUDA_CONTEXT_BYTES = 620 * _MIB
# Where all blocks are on several GPUs one after the other, llama.cpp lets them work on that many batches at once, each
# with inputs of its own (`GGML_SCHED_MAX_COPIES`).
_COPIES = 4


class Needed(NamedTuple):
    """Bytes that a worker takes at most: of each of its devices, and of the machine's memory beside GPUs."""

    of_each: list[int]
    host: int = 0


def of_worker(
    facts: ModelFacts, request: SpawnRequest, ctx_per_slot: int, tensor_split: Sequence[float] | None
) -> Needed:
    """What the worker takes at most."""
    slots, layers = request.slots, request.gpu_layers
    if request.backend == "cpu":
        return Needed([host_bytes(facts, slots, ctx_per_slot, 0)])
    shares = tensor_split or [1.0]
    of_each = gpu_bytes(facts, slots, ctx_per_slot, layers, shares=shares, split=request.split)
    return Needed(of_each, host_bytes(facts, slots, ctx_per_slot, layers))


def of_weights(size_bytes: int, request: SpawnRequest, tensor_split: Sequence[float] | None) -> Needed:
    """What the weights of a model take whose header is not here yet."""
    shares = tensor_split or [1.0]
    if request.gpu_layers == 0 and request.backend == "cuda":
        return Needed([0] * len(shares), size_bytes)
    return Needed([int(size_bytes * share) for share in shares])


def host_bytes(facts: ModelFacts, slots: int, ctx_per_slot: int, gpu_layers: int | None) -> int:
    """Bytes of memory that a worker takes at most for what is not on GPUs.

    The weights are the file's own pages, counted once: where llama.cpp lays them out anew for the processor (Q4_0, Q4_K
    and others), the file's pages are read once, and then the kernel may have them back.
    """
    offloaded = _offloaded_layers(facts, gpu_layers)
    has_output = int(offloaded > 0)
    gone = offloaded - has_output
    weights = facts.weights_bytes - _block_bytes(facts) * gone // max(facts.blocks, 1)
    if has_output and not facts.shares_input:
        weights -= facts.last_bytes
    cache = cache_bytes(facts, slots, ctx_per_slot)
    cache -= cache * gone // max(facts.blocks, 1)
    batch = _batch(facts, slots, ctx_per_slot)
    words = facts.vocabulary * (_BYTES_PER_TOKEN + slots * _CANDIDATE_BYTES) + facts.merges * _BYTES_PER_MERGE
    outputs = batch if facts.makes_vectors else min(batch, slots * OUTPUTS_PER_SLOT)
    work = compute_bytes(facts, slots, ctx_per_slot, outputs) + output_bytes(facts, outputs)
    return weights + cache + work + words + PROCESS_BYTES


def gpu_bytes(
    facts: ModelFacts,
    slots: int,
    ctx_per_slot: int,
    gpu_layers: int | None,
    *,
    shares: Sequence[float] = (1.0,),
    split: SplitMode | None = None,
) -> list[int]:
    """Bytes that a worker takes at most of each GPU's memory, where the model is split among them by `shares`."""
    offloaded = _offloaded_layers(facts, gpu_layers)
    has_output = int(offloaded > 0)
    in_blocks = _block_bytes(facts)
    cache = cache_bytes(facts, slots, ctx_per_slot)
    batch = _batch(facts, slots, ctx_per_slot)
    # Taken in full, whether it is used or not; in memory only what was written to is.
    fixed = compute_bytes(facts, slots, ctx_per_slot, batch) + CUDA_CONTEXT_BYTES
    if split == "layer" and offloaded == facts.blocks + 1:
        fixed += (_COPIES - 1) * (_mask_bytes(facts, slots, ctx_per_slot) + batch * facts.embedding * _F32)
    weights = in_blocks * (offloaded - has_output) // max(facts.blocks, 1) + has_output * facts.last_bytes
    found: list[int] = []
    for number, held in enumerate(_layers_of_each(offloaded, shares)):
        is_last = has_output and number == _device_of(offloaded - 1, offloaded, shares)
        blocks = held - 1 if is_last else held
        if split == "row":
            part = int(weights * shares[number] / sum(shares))
        else:
            part = in_blocks * blocks // max(facts.blocks, 1) + (facts.last_bytes if is_last else 0)
        found.append(part + cache * blocks // max(facts.blocks, 1) + fixed)
    return found


def _offloaded_layers(facts: ModelFacts, gpu_layers: int | None) -> int:
    """How many layers are on GPUs: the last blocks with their caches, and the output, which counts as one more."""
    layers = facts.blocks + 1
    return layers if gpu_layers is None or gpu_layers < 0 else min(gpu_layers, layers)


def _block_bytes(facts: ModelFacts) -> int:
    """The weights of all blocks: neither the table of embeddings, which always stays in memory, nor the output."""
    return facts.weights_bytes - facts.input_bytes - (0 if facts.shares_input else facts.last_bytes)


def _layers_of_each(offloaded: int, shares: Sequence[float]) -> list[int]:
    """How many layers each device holds."""
    where = [_device_of(layer, offloaded, shares) for layer in range(offloaded)]
    return [where.count(device) for device in range(len(shares))]


def _device_of(layer: int, offloaded: int, shares: Sequence[float]) -> int:
    """Which device an offloaded layer is on: `get_layer_buft_list` of llama.cpp, which reckons in 32 bits."""
    ends = [ctypes.c_float(end / sum(shares)).value for end in itertools.accumulate(shares)]
    return min(bisect_right(ends, ctypes.c_float(layer / offloaded).value), len(shares) - 1)


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
    in_blocks = _mask_bytes(facts, slots, ctx_per_slot) + batch * (4 * facts.embedding + 3 * facts.widest) * _F32
    logits = outputs * facts.vocabulary if facts.has_cache else 0
    return max(in_blocks, (logits + 3 * batch * facts.embedding) * _F32)


def output_bytes(facts: ModelFacts, outputs: int) -> int:
    """The buffer in memory from which a step's results are read: `llama_context::output_reserve`.

    It grows to what was wanted most, and has room for logits even where only vectors are wanted.
    """
    return outputs * (facts.vocabulary + (facts.embedding if facts.makes_vectors else 0)) * _F32


def _batch(facts: ModelFacts, slots: int, ctx_per_slot: int) -> int:
    return ctx_per_slot if facts.makes_vectors else min(UBATCH_TOKENS, slots * ctx_per_slot)


def _mask_bytes(facts: ModelFacts, slots: int, ctx_per_slot: int) -> int:
    batch = _batch(facts, slots, ctx_per_slot)
    masks = _cells(ctx_per_slot) if facts.has_cache else batch
    if facts.window_bytes_per_token:
        masks += _window_cells(facts, slots, ctx_per_slot)
    return batch * masks * _F16


def _cells(tokens: int) -> int:
    return -(-tokens // _PADDING) * _PADDING


def _window_cells(facts: ModelFacts, slots: int, ctx_per_slot: int) -> int:
    whole = _cells(ctx_per_slot)
    return whole if KEEPS_WHOLE_WINDOWS else _cells(min(whole, facts.window + _batch(facts, slots, ctx_per_slot)))
