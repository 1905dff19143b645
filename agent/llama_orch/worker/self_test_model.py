"""A tiny quantised model whose every answer is known: what the engine's self-test computes.

Each of its matrices is dense, since most of a wrong kernel's mistakes would not show in zeros. A token has a code of
256 numbers. The feed-forward part is a memory: it finds the token's code and adds the code of the token that follows,
eight times as strong; the output finds that one again. Attention runs on random numbers and adds little. So a kernel
that multiplies wrongly, for one row or for many, ends in another token.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

TOKENS = WIDTH = SLOTS = 256
HEADS = 4
CONTEXT = 512
FORMATS = ("Q4_0", "Q4_K", "Q8_0")

_SEED = 20260101
# Whole numbers from -8 to 7, each as likely, have this standard deviation.
_SPREAD = 4.61
# A number is a whole one times a power of two, which all formats hold exactly.
_CODE, _RANDOM = 2.0**-2, 2.0**-7
_FOUND, _ADDED, _ATTENDED = 2.0**-8, 2.0**-3, 2.0**-7


def following() -> NDArray[np.int64]:
    """The token that follows each token: one cycle through all of them."""
    order = np.random.default_rng(_SEED).permutation(TOKENS)
    after = np.empty(TOKENS, dtype=np.int64)
    after[order] = np.roll(order, -1)
    return after


def write(path: Path, kind: str) -> None:
    """Write the model in one of FORMATS; 0.3 to 0.6 MB. Raises OSError."""
    quantisation = gguf.GGMLQuantizationType[kind]
    draw = np.random.default_rng(_SEED + 1)

    def random(rows: int, columns: int) -> NDArray[np.int64]:
        return draw.integers(-8, 8, (rows, columns))

    codes = random(TOKENS, WIDTH)
    matrices = {
        "token_embd": (codes, _CODE),
        "output": (codes, _CODE),
        "blk.0.attn_q": (random(WIDTH, WIDTH), _RANDOM),
        "blk.0.attn_k": (random(WIDTH, WIDTH), _RANDOM),
        "blk.0.attn_v": (random(WIDTH, WIDTH), _RANDOM),
        "blk.0.attn_output": (random(WIDTH, WIDTH), _ATTENDED),
        "blk.0.ffn_gate": (codes, _FOUND),
        "blk.0.ffn_up": (codes, _FOUND),
        "blk.0.ffn_down": (codes[following()].T, _ADDED),
    }
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _add_metadata(writer)
        for name, (numbers, scale) in matrices.items():
            writer.add_tensor(f"{name}.weight", _PACK[kind](numbers, scale), raw_dtype=quantisation)
        for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
            writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(SLOTS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("no_vocab")


def _blocks(numbers: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    return numbers.reshape(numbers.shape[0], -1, length)


def _halves(values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Two numbers of four bits to a byte: the first half of a row in the low bits, the second in the high ones."""
    middle = values.shape[-1] // 2
    return (values[..., :middle] | values[..., middle:] << 4).astype(np.uint8)


def _scales(scale: float, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.full((*shape, 1), scale, dtype=np.float16).view(np.uint8)


def _joined(rows: int, *parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.concatenate(parts, axis=-1).reshape(rows, -1))


def _q4_0(numbers: NDArray[np.int64], scale: float) -> NDArray[np.uint8]:
    """`block_q4_0` of ggml-common.h: a scale and 32 numbers from 0 to 15, less 8."""
    blocks = _blocks(numbers + 8, 32)
    return _joined(len(numbers), _scales(scale, blocks.shape[:2]), _halves(blocks))


def _q8_0(numbers: NDArray[np.int64], scale: float) -> NDArray[np.uint8]:
    """`block_q8_0`: a scale and 32 numbers from -127 to 127."""
    blocks = _blocks(numbers * 8, 32)
    return _joined(len(numbers), _scales(scale / 8, blocks.shape[:2]), blocks.astype(np.int8).view(np.uint8))


def _q4_k(numbers: NDArray[np.int64], scale: float) -> NDArray[np.uint8]:
    """`block_q4_K`: two scales, eight pairs of six-bit factors for them, 256 numbers from 0 to 15 in groups of 64.

    A number is scale times factor times itself, less the second scale times the second factor. All factors are 1.
    """
    blocks = _blocks(numbers + 8, 256)
    factors = np.array([1] * 8 + [0x11] * 4, dtype=np.uint8)
    packed = _halves(blocks.reshape(*blocks.shape[:2], 4, 64)).reshape(*blocks.shape[:2], 128)
    return _joined(
        len(numbers),
        _scales(scale, blocks.shape[:2]),
        _scales(8 * scale, blocks.shape[:2]),
        np.broadcast_to(factors, (*blocks.shape[:2], 12)),
        packed,
    )


_PACK = {"Q4_0": _q4_0, "Q4_K": _q4_k, "Q8_0": _q8_0}
