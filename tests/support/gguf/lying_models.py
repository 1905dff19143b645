"""GGUF files made to do harm: small, and with headers that promise what no model has."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

U32, I32, F32, STRING, ARRAY, U64 = 4, 5, 6, 8, 9, 10


def text(value: bytes) -> bytes:
    """A string as GGUF has it."""
    return struct.pack("<Q", len(value)) + value


def value(key: bytes, kind: int, content: bytes) -> bytes:
    """One value of a header."""
    return text(key) + struct.pack("<I", kind) + content


def number(key: bytes, content: int) -> bytes:
    """An unsigned value of 64 bits."""
    return value(key, U64, struct.pack("<Q", content))


def tensor(
    name: bytes, shape: Sequence[int], *, kind: int = 0, offset: int = 0, dimensions: int | None = None
) -> bytes:
    """One tensor's entry; `dimensions` lies about the shape."""
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def header(
    values: Sequence[bytes] = (), tensors: Sequence[bytes] = (), *, counts: tuple[int, int] | None = None
) -> bytes:
    """A file that is nothing but its header; `counts` of tensors and values lie."""
    many = (len(tensors), len(values)) if counts is None else counts
    return b"GGUF" + struct.pack("<IQQ", 3, *many) + b"".join((*values, *tensors))


def a_million_dimensions(path: Path, dimensions: int = 60_000) -> Path:
    """480 kB whose product of lengths has four million bits."""
    path.write_bytes(header(tensors=[tensor(b"t", [2**63 - 1] * dimensions)]))
    return path


def llama(values: Sequence[bytes] = (), tensors: Sequence[bytes] = ()) -> bytes:
    """The header of a model of the llama architecture with these values."""
    return header([value(b"general.architecture", STRING, text(b"llama")), *values], tensors)


def slow_to_judge(path: Path) -> Path:
    """A header within all bounds of the reader that takes long to compute facts of: lists as long as may be kept."""
    lists = [
        value(f"llama.{key}".encode(), ARRAY, struct.pack("<IQ", U32, 1024) + struct.pack("<I", 1) * 1024)
        for key in ("block_count", "attention.head_count", "embedding_length", "attention.key_length")
    ]
    tensors = [tensor(f"blk.{block}.attn_k.weight".encode(), [1, 1]) for block in range(4096)]
    path.write_bytes(llama(lists, tensors) + b"\0" * 4096)
    return path
