"""GGUF files of any size that take no time and no disk: the weights are a hole in the file, and so all zero.

llama.cpp reads, maps and computes with them as with any other, so they show what a model of that shape takes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Q8_0, Q4_0 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0
_ALIGNMENT = 32
_BLOCK_LENGTH = 32
_TRAINED_CONTEXT = 32_768

Shapes = dict[str, tuple[int, ...]]


def llama(
    path: Path,
    *,
    blocks: int = 12,
    embedding: int = 1024,
    heads: int = 16,
    kv_heads: int = 4,
    feed_forward: int = 2816,
    vocabulary: int = 32_000,
    kind: gguf.GGMLQuantizationType = Q8_0,
) -> Path:
    """A dense model. As it stands it has the shape of the bench model: 214 MB."""
    shapes = _ends(embedding, vocabulary) | {"output.weight": (vocabulary, embedding)}
    for block in range(blocks):
        shapes |= _attention(block, embedding, heads, kv_heads, embedding // heads)
        shapes |= _feed_forward(block, embedding, feed_forward)
    values = _values(blocks, embedding, heads, kv_heads, feed_forward)
    return write(path, "llama", values | {"rope.dimension_count": embedding // heads}, shapes, vocabulary, kind=kind)


def gemma3(path: Path, *, blocks: int = 12, vocabulary: int = 4000) -> Path:
    """A model with a sliding window in five blocks of six."""
    embedding, heads, size, feed_forward = 640, 4, 256, 2048
    shapes = _ends(embedding, vocabulary)
    for block in range(blocks):
        shapes |= _attention(block, embedding, heads, 1, size, norms=True)
        shapes |= _feed_forward(block, embedding, feed_forward)
        shapes |= {f"blk.{block}.post_{part}_norm.weight": (embedding,) for part in ("attention", "ffw")}
    values = _values(blocks, embedding, heads, 1, feed_forward, head_size=size) | {"attention.sliding_window": 512}
    return write(path, "gemma3", values, shapes, vocabulary)


def qwen3moe(path: Path, *, blocks: int = 4, vocabulary: int = 4000) -> Path:
    """A mixture of experts, 8 of 16 in use."""
    embedding, heads, kv_heads, size, expert = 2048, 32, 4, 128, 768
    shapes = _ends(embedding, vocabulary)
    for block in range(blocks):
        shapes |= _attention(block, embedding, heads, kv_heads, size, norms=True)
        shapes |= {f"blk.{block}.ffn_norm.weight": (embedding,), f"blk.{block}.ffn_gate_inp.weight": (16, embedding)}
        shapes |= {f"blk.{block}.ffn_{part}_exps.weight": (16, expert, embedding) for part in ("gate", "up")}
        shapes |= {f"blk.{block}.ffn_down_exps.weight": (16, embedding, expert)}
    values = _values(blocks, embedding, heads, kv_heads, 6144, head_size=size)
    values |= {"expert_count": 16, "expert_used_count": 8, "expert_feed_forward_length": expert}
    return write(path, "qwen3moe", values, shapes, vocabulary)


def mamba(path: Path, *, blocks: int = 12, vocabulary: int = 4000) -> Path:
    """A model without attention."""
    embedding = 768
    shapes = _ends(embedding, vocabulary)
    for block in range(blocks):
        shapes |= _mamba_mixer(block, embedding)
    return write(path, "mamba", _values(blocks, embedding, 0, 0, 0) | _mamba_values(embedding), shapes, vocabulary)


def jamba(path: Path, *, blocks: int = 8, vocabulary: int = 4000) -> Path:
    """A hybrid: each fourth block has attention, as the list of KV heads says; the others have a state."""
    embedding, heads, feed_forward = 1024, 16, 2816
    kv_heads = [4 if block % 4 == 2 else 0 for block in range(blocks)]
    shapes = _ends(embedding, vocabulary)
    for block in range(blocks):
        if kv_heads[block]:
            shapes |= _attention(block, embedding, heads, 4, embedding // heads)
        else:
            norms = {"dt": embedding // 16, "b": 16, "c": 16}
            shapes |= _mamba_mixer(block, embedding)
            shapes |= {f"blk.{block}.ssm_{part}_norm.weight": (length,) for part, length in norms.items()}
        shapes |= _feed_forward(block, embedding, feed_forward)
    values = _values(blocks, embedding, heads, kv_heads, feed_forward) | _mamba_values(embedding)
    return write(path, "jamba", values, shapes, vocabulary)


def lfm2(path: Path, *, blocks: int = 10, vocabulary: int = 4000) -> Path:
    """A hybrid of attention and short convolutions."""
    embedding, heads, feed_forward = 1024, 16, 4608
    kv_heads = [8 if block % 3 == 2 else 0 for block in range(blocks)]
    shapes: Shapes = {"token_embd.weight": (vocabulary, embedding), "token_embd_norm.weight": (embedding,)}
    for block in range(blocks):
        if kv_heads[block]:
            shapes |= _attention(block, embedding, heads, 8, embedding // heads, norms=True)
        else:
            shapes |= {
                f"blk.{block}.attn_norm.weight": (embedding,),
                f"blk.{block}.shortconv.conv.weight": (embedding, 3),
                f"blk.{block}.shortconv.in_proj.weight": (3 * embedding, embedding),
                f"blk.{block}.shortconv.out_proj.weight": (embedding, embedding),
            }
        shapes |= _feed_forward(block, embedding, feed_forward)
    values = _values(blocks, embedding, heads, kv_heads, feed_forward) | {"shortconv.l_cache": 3}
    return write(path, "lfm2", values, shapes, vocabulary)


def qwen35(path: Path, *, blocks: int = 8, vocabulary: int = 4000) -> Path:
    """A hybrid whose recurrent blocks have a tensor that is attention's elsewhere, and whose KV heads are no list."""
    embedding, heads, kv_heads, size, feed_forward = 1024, 8, 2, 256, 3584
    state, groups, ranks = 128, 16, 32
    inner, joined = state * ranks, 2 * state * groups + state * ranks
    shapes = _ends(embedding, vocabulary)
    for block in range(blocks):
        name = f"blk.{block}."
        if block % 4 == 3:
            shapes |= _attention(block, embedding, heads, kv_heads, size, norms=True)
            shapes[f"{name}attn_q.weight"] = (2 * heads * size, embedding)
        else:
            shapes |= {
                f"{name}attn_norm.weight": (embedding,),
                f"{name}attn_qkv.weight": (joined, embedding),
                f"{name}attn_gate.weight": (inner, embedding),
                f"{name}ssm_conv1d.weight": (joined, 4),
                f"{name}ssm_dt.bias": (ranks,),
                f"{name}ssm_a": (ranks,),
                f"{name}ssm_beta.weight": (ranks, embedding),
                f"{name}ssm_alpha.weight": (ranks, embedding),
                f"{name}ssm_norm.weight": (state,),
                f"{name}ssm_out.weight": (embedding, inner),
            }
        shapes |= _feed_forward(block, embedding, feed_forward)
        shapes[f"{name}post_attention_norm.weight"] = shapes.pop(f"{name}ffn_norm.weight")
    values = _values(blocks, embedding, heads, kv_heads, feed_forward, head_size=size)
    values |= {"ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": state, "ssm.time_step_rank": ranks}
    values |= {"ssm.group_count": groups, "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0]}
    return write(path, "qwen35", values | {"full_attention_interval": 4}, shapes, vocabulary)


def bert(
    path: Path, *, blocks: int = 2, vocabulary: int = 1000, context_length: int = 128, aborts: bool = False
) -> Path:
    """A model for vectors: it keeps nothing of what it read, and has learned so many positions and no more.

    Where it `aborts`, llama.cpp loads it and ends the process when it is to compute: it cannot add what is quantised.
    """
    embedding, feed_forward = 256, 512
    shapes: Shapes = {
        "token_embd.weight": (vocabulary, embedding),
        "token_types.weight": (2, embedding),
        "position_embd.weight": (context_length, embedding),
        "token_embd_norm.weight": (embedding,),
        "token_embd_norm.bias": (embedding,),
    }
    for block in range(blocks):
        name = f"blk.{block}."
        for part, rows, columns in (
            ("attn_q", embedding, embedding), ("attn_k", embedding, embedding), ("attn_v", embedding, embedding),
            ("attn_output", embedding, embedding), ("ffn_up", feed_forward, embedding),
            ("ffn_down", embedding, feed_forward),
        ):  # fmt: skip
            shapes |= {f"{name}{part}.weight": (rows, columns), f"{name}{part}.bias": (rows,)}
        for part in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"{name}{part}.weight": (embedding,), f"{name}{part}.bias": (embedding,)}
    values: dict[str, Any] = _values(blocks, embedding, 4, 4, feed_forward) | {
        "context_length": context_length, "attention.layer_norm_epsilon": 1e-5, "attention.causal": False,
        "pooling_type": int(gguf.PoolingType.MEAN),
    }  # fmt: skip
    return write(path, "bert", values, shapes, vocabulary, plain=() if aborts else ("token_types.weight",))


def filled(path: Path) -> Path:
    """The same file with weights that mean nothing instead of zeros: small numbers of a fixed seed, norms of one."""
    draw = np.random.default_rng(7)
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.tensor_type == Q8_0:
            blocks = tensor.data.reshape(-1, 34)
            blocks[:, :2] = np.full((len(blocks), 1), 0.0004, dtype=np.float16).view(np.uint8)
            blocks[:, 2:] = draw.integers(-127, 128, (len(blocks), 32)).astype(np.int8).view(np.uint8)
        elif "norm" in tensor.name:
            tensor.data[:] = 1
        else:
            tensor.data[:] = draw.normal(0, 0.02, tensor.data.shape)
    return path


def write(
    path: Path,
    architecture: str,
    values: Mapping[str, int | float | bool | list[int]],
    shapes: Shapes,
    vocabulary: int,
    *,
    kind: gguf.GGMLQuantizationType = Q8_0,
    plain: Collection[str] = (),
) -> Path:
    """Write a model with these values, named without the architecture, and tensors of these shapes, rows first.

    Those named in `plain` are not quantised.
    """
    writer = gguf.GGUFWriter(path, architecture)
    _add_vocabulary(writer, vocabulary)
    if "token_types.weight" in shapes:
        writer.add_token_type_count(shapes["token_types.weight"][0])
    adders: dict[type, Any] = {
        bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array
    }  # fmt: skip
    for key, value in values.items():
        adders[type(value)](f"{architecture}.{key}", value)
    data = sum(
        _add_tensor(writer, name, shape, gguf.GGMLQuantizationType.F32 if name in plain else kind)
        for name, shape in shapes.items()
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, _aligned(path.stat().st_size) + data)
    return path


def _add_tensor(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> int:
    """Name a tensor in the header; answers how many bytes it takes in the file."""
    if kind == gguf.GGMLQuantizationType.F32 or len(shape) == 1 or shape[-1] % _BLOCK_LENGTH:
        size = 4 * prod(shape)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size)
    else:
        length, length_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = prod(shape) // length * length_bytes
        bytes_shape = gguf.quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), size, raw_dtype=kind)
    return _aligned(size)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _add_vocabulary(writer: gguf.GGUFWriter, count: int) -> None:
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [f"\u2581w{number}" for number in range(count - len(texts))]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer.add_vocab_size(count)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts + words)
    writer.add_token_scores([0.0] * count)
    writer.add_token_types([int(kind) for kind in kinds] + [int(gguf.TokenType.NORMAL)] * len(words))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _values(
    blocks: int, embedding: int, heads: int, kv_heads: int | list[int], feed_forward: int, *, head_size: int = 0
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "context_length": _TRAINED_CONTEXT,
        "embedding_length": embedding,
        "block_count": blocks,
        "feed_forward_length": feed_forward,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    return values | ({f"attention.{part}_length": head_size for part in ("key", "value")} if head_size else {})


def _mamba_values(embedding: int) -> dict[str, int]:
    ranks = embedding // 16
    return {"ssm.conv_kernel": 4, "ssm.inner_size": 2 * embedding, "ssm.state_size": 16, "ssm.time_step_rank": ranks}


def _ends(embedding: int, vocabulary: int) -> Shapes:
    return {"token_embd.weight": (vocabulary, embedding), "output_norm.weight": (embedding,)}


def _attention(block: int, embedding: int, heads: int, kv_heads: int, size: int, *, norms: bool = False) -> Shapes:
    name = f"blk.{block}.attn_"
    shapes: Shapes = {
        f"{name}norm.weight": (embedding,),
        f"{name}q.weight": (heads * size, embedding),
        f"{name}k.weight": (kv_heads * size, embedding),
        f"{name}v.weight": (kv_heads * size, embedding),
        f"{name}output.weight": (embedding, heads * size),
    }
    return shapes | ({f"{name}{part}_norm.weight": (size,) for part in ("q", "k")} if norms else {})


def _feed_forward(block: int, embedding: int, width: int) -> Shapes:
    name = f"blk.{block}.ffn_"
    return {
        f"{name}norm.weight": (embedding,),
        f"{name}gate.weight": (width, embedding),
        f"{name}up.weight": (width, embedding),
        f"{name}down.weight": (embedding, width),
    }


def _mamba_mixer(block: int, embedding: int) -> Shapes:
    name, inner, ranks, state = f"blk.{block}.", 2 * embedding, embedding // 16, 16
    return {
        f"{name}attn_norm.weight": (embedding,),
        f"{name}ssm_in.weight": (2 * inner, embedding),
        f"{name}ssm_conv1d.weight": (inner, 4),
        f"{name}ssm_conv1d.bias": (inner,),
        f"{name}ssm_x.weight": (ranks + 2 * state, inner),
        f"{name}ssm_dt.weight": (inner, ranks),
        f"{name}ssm_dt.bias": (inner,),
        f"{name}ssm_a": (inner, state),
        f"{name}ssm_d": (inner,),
        f"{name}ssm_out.weight": (embedding, inner),
    }
