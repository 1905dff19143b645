"""What the header of a GGUF file tells: is it whole, and how much memory will the model need.

The format: github.com/ggml-org/ggml, docs/gguf.md. Read here rather than with gguf's own reader, which maps the whole
file and takes seconds over the vocabulary of a large model.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from .problems import Failed

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# No real header comes near these; a damaged one easily does.
_MOST_ENTRIES = 1_000_000
_LONGEST_STRING = 64 * 1024 * 1024
_DEFAULT_ALIGNMENT = 32
_BYTES_PER_KV_VALUE = 2
_SCRATCH_BASE = 64 * 1024 * 1024
_BATCH_TOKENS = 512
_ACTIVATIONS_PER_WIDTH = 16
_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf\Z")


@dataclass(frozen=True)
class ModelFacts:
    """What one model is: `weights_bytes` counts all of its parts; lengths are in tokens."""

    architecture: str
    weights_bytes: int
    context_length: int
    layers: int
    embedding: int
    vocabulary: int
    kv_bytes_per_token: int
    paths: tuple[Path, ...] = field(default=())

    def memory_bytes(self, slots: int, ctx_per_slot: int) -> int:
        """An estimate of what serving it needs: weights, KV cache for each slot's context, scratch."""
        scratch = _SCRATCH_BASE + _BATCH_TOKENS * 4 * (self.vocabulary + _ACTIVATIONS_PER_WIDTH * self.embedding)
        return self.weights_bytes + self.kv_bytes_per_token * slots * ctx_per_slot + scratch


def split_name(name: str) -> tuple[str, int, int] | None:
    """(stem, number, count) of a file that is one part of a model; None for a whole one."""
    match = _PART.match(name)
    return (match["stem"], int(match["number"]), int(match["count"])) if match else None


def part_names(name: str) -> list[str]:
    """The names of all parts of the model that a file belongs to; its own name alone where it is whole."""
    parts = split_name(name)
    if parts is None:
        return [name]
    stem, _, count = parts
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def read(path: Path) -> ModelFacts:
    """Check a model's files and read its facts. Raises Failed where they are missing, cut off or no GGUF."""
    paths = [path.parent / name for name in part_names(path.name)]
    headers = [_checked(part) for part in paths]
    values = headers[0]
    architecture = str(values.get("general.architecture", "unknown"))

    def number(key: str, default: int = 0) -> int:
        value = values.get(f"{architecture}.{key}", default)
        # Some models give each layer its own count.
        return max(value, default=default) if isinstance(value, list) else int(value)

    layers, embedding, heads = number("block_count"), number("embedding_length"), number("attention.head_count", 1)
    head_size = embedding // max(heads, 1)
    kv_heads = number("attention.head_count_kv", heads)
    key, value = number("attention.key_length", head_size), number("attention.value_length", head_size)
    return ModelFacts(
        architecture=architecture,
        weights_bytes=sum(part.stat().st_size for part in paths),
        context_length=number("context_length"),
        layers=layers,
        embedding=embedding,
        vocabulary=int(values.get("tokenizer.ggml.tokens", 0)),
        kv_bytes_per_token=layers * kv_heads * (key + value) * _BYTES_PER_KV_VALUE,
        paths=tuple(paths),
    )


def _checked(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            values, needed = _Header(file, path.name).read()
    except FileNotFoundError:
        raise Failed(
            "model_not_found", f"{path.name} is not there", "download the model, or correct its path"
        ) from None
    except OSError as error:
        raise Failed(
            "model_unreadable", f"{path.name} cannot be read: {error.strerror}", "let the hive's user read the file"
        ) from None
    if size < needed:
        raise Failed(
            "model_truncated",
            f"{path.name} is cut off: its header promises {needed} bytes and the file has {size}",
            "copy or download the file again",
        )
    return values


class _Header:
    """Reads one file's header from its start. Long lists (the vocabulary) are counted, not kept."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name

    def read(self) -> tuple[dict[str, Any], int]:
        """The values by key, and how long the file must be at least."""
        if self._file.read(4) != MAGIC:
            raise Failed(
                "model_unreadable",
                f"{self._name} is not a GGUF file: it does not begin with 'GGUF'",
                "name a .gguf file of llama.cpp's format; a web page saved under that name is a common cause",
            )
        version = self._number("<I")
        if version not in _VERSIONS:
            raise Failed(
                "model_unreadable", f"{self._name} is GGUF version {version}; 2 and 3 can be read", "convert it again"
            )
        tensors, entries = self._count("<Q"), self._count("<Q")
        values: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            values[key] = self._value(self._number("<I"))
        needed = max((self._tensor_end() for _ in range(tensors)), default=0)
        alignment = int(values.get("general.alignment", _DEFAULT_ALIGNMENT)) or _DEFAULT_ALIGNMENT
        return values, -(-self._file.tell() // alignment) * alignment + needed

    def _tensor_end(self) -> int:
        self._string()
        dimensions = [self._number("<Q") for _ in range(self._count("<I"))]
        kind, offset = self._number("<I"), self._number("<Q")
        elements = 1
        for dimension in dimensions:
            elements *= dimension
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError:
            return offset
        return offset + elements // block * block_bytes

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(self._number("<I"), self._number("<Q"))
        raise self._damaged(f"a value of unknown type {kind}")

    def _array(self, kind: int, count: int) -> Any:
        if kind in _SCALARS:
            size = struct.calcsize(_SCALARS[kind])
            if count <= 1024:
                return [self._number(_SCALARS[kind]) for _ in range(count)]
            self._skip(size * count)
            return count
        if kind != _STRING or count > 64 * _MOST_ENTRIES:
            raise self._damaged("a list that cannot be")
        for _ in range(count):
            self._skip(self._number("<Q"))
        return count

    def _string(self) -> str:
        return self._bytes(self._number("<Q")).decode(errors="replace")

    def _count(self, layout: str) -> int:
        count = self._number(layout)
        if count > _MOST_ENTRIES:
            raise self._damaged(f"{count} entries")
        return count

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _skip(self, length: int) -> None:
        if length < 4096:
            self._bytes(length)
        else:
            self._file.seek(length, 1)

    def _bytes(self, length: int) -> bytes:
        if length > _LONGEST_STRING:
            raise self._damaged(f"a text of {length} bytes")
        found = self._file.read(length)
        if len(found) < length:
            raise Failed("model_truncated", f"{self._name} ends within its header", "copy or download the file again")
        return found

    def _damaged(self, what: str) -> Failed:
        return Failed("model_unreadable", f"the header of {self._name} is damaged: {what}", "download the file again")
