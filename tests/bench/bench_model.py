"""The models that are measured: the shape and the cost of real llamas, with weights that mean nothing.

Both have 32,000 tokens and Q8_0: a small one for processors, 214 MB, and one of 7 billion for GPUs, 7.5 GB. Two things
in them are on purpose:

- the tokens of a prompt are known without asking: pairs of a capital and a small letter are tokens (`Qa`), and no
  other run of letters can be merged, so a text of n pairs has n tokens and the first one that is always there;
- it never ends an answer by itself, and never writes half a character: the control and byte tokens have logits of
  exactly zero, and among 31,000 others one is always above.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from random import Random
from string import ascii_lowercase, ascii_uppercase

import gguf
import numpy as np
from numpy.typing import NDArray

VOCABULARY = 32_000
CONTEXT = 8192
SEED = 20240601

_SPACE = "\u2581"
_CONTROL = ("<unk>", "<s>", "</s>")
_PAIRS = [first + second for first, second in product(ascii_uppercase, ascii_lowercase)]
_SILENT = len(_CONTROL) + 256
# Numbers from -127 to 127, each as likely, have this standard deviation.
_UNIFORM = 73.3


@dataclass(frozen=True)
class Shape:
    """How many blocks of which width there are, heads, those for keys and values, and the width in between."""

    blocks: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int


SMALL = Shape(12, 1024, 16, 4, 2816)
LARGE = Shape(32, 4096, 32, 8, 14_336)


def bench_model(cache: Path, shape: Shape = SMALL) -> Path:
    """The model's file; written where the cache has none, the same bytes each time."""
    # Whatever is changed here changes the model.
    key = hashlib.sha256(Path(__file__).read_bytes() + repr(shape).encode()).hexdigest()[:16]
    path = cache / f"model-{key}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            _write(partial, shape)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def prompt(tokens: int, draw: Random) -> str:
    """A text of exactly that many tokens, the one that begins every prompt included."""
    return "".join(draw.choices(_PAIRS, k=tokens - 1))


def unshared_prompt(tokens: int, number: int, draw: Random) -> str:
    """The same, with a first pair of its own for each number below 676: nothing of another prompt fits it."""
    return _PAIRS[number] + prompt(tokens - 1, draw)


def _write(path: Path, shape: Shape) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _add_metadata(writer, shape)
        _add_tokenizer(writer)
        _add_tensors(writer, shape)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("llama-orch bench model")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    groups = (
        (_CONTROL[:1], gguf.TokenType.UNKNOWN),
        (_CONTROL[1:], gguf.TokenType.CONTROL),
        ([f"<0x{byte:02X}>" for byte in range(256)], gguf.TokenType.BYTE),
        ([_SPACE, *(chr(code) for code in range(0x21, 0x7F))], gguf.TokenType.NORMAL),
        (_PAIRS, gguf.TokenType.NORMAL),
    )
    texts = [text for group, _ in groups for text in group]
    types = [int(kind) for group, kind in groups for _ in group]
    # Words that only answers have: no part of them is a token, so a prompt never becomes one.
    words = ("".join((_SPACE, *letters)) for letters in product(ascii_lowercase, repeat=4))
    texts += islice(words, VOCABULARY - len(texts))
    types += [int(gguf.TokenType.NORMAL)] * (VOCABULARY - len(types))
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _add_tensors(writer: gguf.GGUFWriter, shape: Shape) -> None:
    width = shape.width
    draw = np.random.default_rng(SEED)
    kv_width = width // shape.heads * shape.kv_heads
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("token_embd.weight", _random(draw, VOCABULARY, width), raw_dtype=kind)
    writer.add_tensor("output.weight", _random(draw, VOCABULARY, width, zeros=_SILENT), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for block in range(shape.blocks):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{norm}.weight", np.ones(width, dtype=np.float32))
        for name, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", kv_width, width),
            ("attn_v", kv_width, width),
            ("attn_output", width, width),
            ("ffn_gate", shape.feed_forward, width),
            ("ffn_up", shape.feed_forward, width),
            ("ffn_down", width, shape.feed_forward),
        ):
            writer.add_tensor(f"blk.{block}.{name}.weight", _random(draw, rows, columns), raw_dtype=kind)


def _random(draw: np.random.Generator, rows: int, columns: int, *, zeros: int = 0) -> NDArray[np.uint8]:
    """Q8_0 blocks, each a scale and 32 numbers, scaled so that a layer keeps its input's size; `zeros` rows are 0."""
    length, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0]
    blocks = np.empty((rows, columns // length, size), dtype=np.uint8)
    scale = np.array([columns**-0.5 / _UNIFORM], dtype="<f2")
    blocks[..., :2] = scale.view(np.uint8)
    blocks[..., 2:] = draw.integers(-127, 128, (rows, columns // length, length), dtype=np.int8).view(np.uint8)
    blocks[:zeros] = 0
    return blocks.reshape(rows, -1)
