"""What of a GGUF header says how much memory a model needs.

The keys are those of the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md). How llama.cpp reads them is in
its `src/llama-model.cpp` (`load_hparams`, `create_memory`) and `src/llama-hparams.cpp`. A block's kind is read from the
names of its tensors, so that no list of architectures is needed for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..problems import Failed
from . import gguf_header
from .gguf_header import Header

# llama.cpp gives these no cache: each text is computed at once (`create_memory`).
_WITHOUT_CACHE = frozenset({
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "modern-bert",
    "gemma-embedding", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1",
})  # fmt: skip
# Files of these values of `general.type` go beside a model (gguf's GGUFType).
_BESIDE_MODELS = {"adapter": "an adapter (LoRA)", "mmproj": "a projector (mmproj)", "imatrix": "an importance matrix"}
# Every so many blocks one sees the whole context, where the header does not say (`load_swa_pattern` of each model).
_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "olmo2": 4}
# llama_pooling_type of llama.h: mean, first or last token of a text make its vector.
_POOLED = {1, 2, 3}
_F16, _F32 = 2, 4
_BEYOND_ALL = 2**63
# What later is counted one by one; llama.cpp's own bound is 512 (LLAMA_MAX_LAYERS).
_MOST_BLOCKS = 4096
# Of what llama.cpp keeps in 32 bits, and of bytes.
_MOST_COUNTED, _MOST_BYTES = 2**32, 2**62
_LONGEST_NAME = 128
_BLOCK = re.compile(r"blk\.(?P<number>\d+)\.(?P<rest>.+)\Z")


@dataclass(frozen=True)
class ModelFacts:
    """One model. Lengths are in tokens, `embedding` and `widest` in values per token.

    `cache_bytes_per_token` is of blocks that look at the whole context, `window_bytes_per_token` of those that look
    back `window` tokens only, `state_bytes_per_slot` of recurrent blocks. `widest` is the most that one matrix of a
    block makes of a token. `input_bytes` is the table of the tokens' embeddings and `last_bytes` the matrix of the
    output, both a part of `weights_bytes`; with `shares_input` they are the same one. A model that makes vectors
    generates no text; one without `has_cache` computes each text at once.
    """

    architecture: str
    file_bytes: int
    weights_bytes: int
    context_length: int
    blocks: int
    embedding: int
    vocabulary: int
    merges: int = 0
    widest: int = 0
    input_bytes: int = 0
    last_bytes: int = 0
    cache_bytes_per_token: int = 0
    window_bytes_per_token: int = 0
    window: int = 0
    state_bytes_per_slot: int = 0
    shares_input: bool = False
    makes_vectors: bool = False
    has_cache: bool = True


def read(path: Path) -> ModelFacts:
    """Check a model's files and read its facts. Raises Failed where they are missing, cut off or no GGUF."""
    return of(gguf_header.read(path))


def of(header: Header) -> ModelFacts:
    """The facts of a header. Raises Failed where it is damaged, or of what is no model."""
    if (what := _BESIDE_MODELS.get(str(header.values.get("general.type")))) is not None:
        raise Failed("model_unreadable", f"the file is {what} and no model", "name the file of the model itself")
    keys = _Keys(header)
    whole = windowed = states = 0
    blocks = _blocks(header)
    if len(blocks) > _MOST_BLOCKS:
        raise Failed(
            "model_unreadable", f"the header is damaged: it has {len(blocks)} blocks", "download the file again"
        )
    for number, names in blocks.items():
        if _is_windowed(keys, number):
            windowed += _cache_bytes(keys, number, names)
        else:
            whole += _cache_bytes(keys, number, names)
        states += _state_bytes(keys) if _is_recurrent(names) else 0
    tables = {tensor.name: tensor.size_bytes for tensor in header.tensors}
    return _plausible(
        ModelFacts(
            architecture=keys.architecture[:_LONGEST_NAME],
            file_bytes=header.file_bytes,
            weights_bytes=header.data_bytes,
            context_length=keys.number("context_length"),
            blocks=keys.number("block_count"),
            embedding=keys.number("embedding_length"),
            vocabulary=keys.count("tokenizer.ggml.tokens"),
            merges=keys.count("tokenizer.ggml.merges"),
            widest=max(_widths(keys, header), default=0),
            input_bytes=tables.get("token_embd.weight", 0),
            last_bytes=tables.get("output.weight", tables.get("token_embd.weight", 0)),
            cache_bytes_per_token=whole,
            window_bytes_per_token=windowed,
            window=keys.number("attention.sliding_window") if windowed else 0,
            state_bytes_per_slot=states,
            shares_input="output.weight" not in tables,
            makes_vectors=keys.number("pooling_type") in _POOLED or keys.get("attention.causal") is False,
            has_cache=keys.architecture not in _WITHOUT_CACHE,
        )
    )


def _plausible(facts: ModelFacts) -> ModelFacts:
    """The facts, where each is a number that a model can have. Raises Failed."""
    for field in fields(ModelFacts):
        value = getattr(facts, field.name)
        most = _MOST_BLOCKS if field.name == "blocks" else _MOST_BYTES if "bytes" in field.name else _MOST_COUNTED
        if isinstance(value, int) and not 0 <= value <= most:
            raise Failed(
                "model_unreadable",
                f"the header is damaged: {field.name} cannot be {value:.3g}",
                "download the file again",
            )
    return facts


class _Keys:
    """The header's values of the model's own architecture."""

    def __init__(self, header: Header) -> None:
        self._values = header.values
        self.architecture = str(header.values.get("general.architecture", "unknown"))

    def get(self, key: str) -> Any:
        return self._values.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        """A number; the largest where each block has its own. Raises Failed where it is none."""
        found = self.get(key)
        if isinstance(found, list):
            return max((_integer(key, value) for value in found), default=default)
        return default if found is None else _integer(key, found)

    def of_block(self, key: str, block: int, default: int) -> int:
        """A number that each block may have its own of. Raises Failed where it is none."""
        found = self.get(key)
        if isinstance(found, list):
            return _integer(key, found[block]) if block < len(found) else default
        return default if found is None else _integer(key, found)

    def count(self, name: str) -> int:
        """How long a list is, of whatever architecture."""
        found = self._values.get(name, 0)
        return len(found) if isinstance(found, list) else _integer(name, found)


def _integer(key: str, value: Any) -> int:
    if isinstance(value, int | float) and abs(value) < _BEYOND_ALL:
        return int(value)
    raise Failed("model_unreadable", f"the header is damaged: {key} is no number", "download the file again")


def _blocks(header: Header) -> dict[int, set[str]]:
    """The names of each block's tensors, without `blk.N.`."""
    blocks: dict[int, set[str]] = {}
    for tensor in header.tensors:
        if match := _BLOCK.match(tensor.name):
            blocks.setdefault(int(match["number"]), set()).add(match["rest"])
    return blocks


def _is_recurrent(names: set[str]) -> bool:
    return any(name.startswith(("ssm_", "time_mix_", "shortconv.")) for name in names)


def _has_attention(names: set[str]) -> bool:
    if names & {"attn_k.weight", "attn_kv_a_mqa.weight"}:
        return True
    # Recurrent blocks of some models (Qwen 3.5) keep their own input under the name of joined Q, K and V.
    return "attn_qkv.weight" in names and not _is_recurrent(names)


def _cache_bytes(keys: _Keys, block: int, names: set[str]) -> int:
    """Bytes of K and V for one token, as F16: `llama_kv_cache::llama_kv_cache`."""
    count = keys.number("block_count")
    # The last ones use an earlier block's cache, or predict further tokens, which the engine does not ask for.
    unused = keys.number("attention.shared_kv_layers") + keys.number("nextn_predict_layers")
    if keys.architecture in _WITHOUT_CACHE or not _has_attention(names) or block >= count - unused:
        return 0
    heads = keys.number("attention.head_count", 1)
    size = keys.number("embedding_length") // max(heads, 1)
    key, value = keys.number("attention.key_length", size), keys.number("attention.value_length", size)
    if _is_windowed(keys, block):
        key = keys.number("attention.key_length_swa", key)
        value = keys.number("attention.value_length_swa", value)
    if keys.get("attention.key_length_mla") is not None:
        # Multi-head latent attention keeps K alone, and some models an index of it.
        value = keys.number("attention.indexer.key_length")
    kv_heads = keys.of_block("attention.head_count_kv", block, keys.of_block("attention.head_count", block, 1))
    return kv_heads * (key + value) * _F16


def _is_windowed(keys: _Keys, block: int) -> bool:
    """Whether a block looks back `attention.sliding_window` tokens only: `llama_hparams::set_swa_pattern`."""
    if not keys.number("attention.sliding_window"):
        return False
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return block < len(pattern) and bool(pattern[block])
    if pattern is None:
        pattern = _WINDOW_PERIODS.get(keys.architecture, 1)
    period = _integer("attention.sliding_window_pattern", pattern)
    return period == 0 or block % period < period - 1


def _state_bytes(keys: _Keys) -> int:
    """Bytes that a recurrent block keeps for one slot, as F32: `llama_hparams::n_embd_r` and `n_embd_s`."""
    embedding, heads = keys.number("embedding_length"), keys.number("attention.head_count", 1)
    kernel, inner = keys.number("ssm.conv_kernel"), keys.number("ssm.inner_size")
    state, groups = keys.number("ssm.state_size"), keys.number("ssm.group_count")
    if head := keys.number("wkv.head_size"):  # RWKV
        values = embedding * (keys.number("token_shift_count", 2) + head)
    elif length := keys.number("shortconv.l_cache"):  # LFM2
        values = embedding * (length - 1)
    elif head := keys.number("kda.head_dim"):  # Kimi Linear
        values = heads * head * (3 * (kernel - 1 if kernel else 3) + head)
    else:  # Mamba and those after it
        values = max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner
    return values * _F32


def _widths(keys: _Keys, header: Header) -> Iterator[int]:
    """How many values each of the blocks' matrices makes of one token."""
    experts = keys.number("expert_used_count", 1)
    for tensor in header.tensors:
        if len(tensor.shape) < 2 or not _BLOCK.match(tensor.name):
            continue
        # A third dimension is one of experts, of which a few are used, or of heads, of which all are.
        depth = tensor.shape[2] if len(tensor.shape) > 2 else 1
        yield tensor.shape[1] * (min(experts, depth) if "_exps." in tensor.name else depth)
