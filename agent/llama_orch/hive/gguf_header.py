"""Reads the header of a GGUF file: its values, its tensors, and whether the file is whole.

The format: github.com/ggml-org/ggml, docs/gguf.md. Read here rather than with gguf's own reader, which maps the whole
file and takes seconds over the vocabulary of a large model. What the values mean is `model_facts.py`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from .problems import Failed

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# No real header comes near these; a damaged one easily does.
_MOST_ENTRIES = 1_000_000
_LONGEST_STRING = 64 * 1024 * 1024
_DEFAULT_ALIGNMENT = 32
_PART_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf\Z")


@dataclass(frozen=True)
class Tensor:
    """A tensor as the header names it. `shape` is in ggml's order: a matrix gives `shape[1]` values per token."""

    name: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Header:
    """What the headers of all parts of one model say; long lists are counted in `values`, not kept.

    `file_bytes` are whole files, `data_bytes` what of them are tensors.
    """

    values: dict[str, Any]
    tensors: tuple[Tensor, ...]
    file_bytes: int
    data_bytes: int


@dataclass(frozen=True)
class _Part:
    values: dict[str, Any]
    tensors: list[Tensor]
    data_start: int
    least_bytes: int
    file_bytes: int = 0


def split_name(name: str) -> tuple[str, int, int] | None:
    """(stem, number, count) of a file that is one part of a model; None for a whole one."""
    match = _PART_NAME.match(name)
    return (match["stem"], int(match["number"]), int(match["count"])) if match else None


def part_names(name: str) -> list[str]:
    """The names of all parts of the model that a file belongs to; its own name alone where it is whole."""
    parts = split_name(name)
    if parts is None:
        return [name]
    stem, _, count = parts
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def read(path: Path) -> Header:
    """Check a model's files and read their headers. Raises Failed where they are missing, cut off or no GGUF."""
    paths = [path.parent / name for name in part_names(path.name)]
    parts = [_checked(part) for part in paths]
    return Header(
        values=parts[0].values,
        tensors=tuple(tensor for part in parts for tensor in part.tensors),
        file_bytes=sum(part.file_bytes for part in parts),
        data_bytes=sum(part.file_bytes - part.data_start for part in parts),
    )


def _checked(path: Path) -> _Part:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            part = _Reader(file, path.name).read()
    except FileNotFoundError:
        raise Failed(
            "model_not_found", f"{path.name} is not there", "download the model, or correct its path"
        ) from None
    except OSError as error:
        raise Failed(
            "model_unreadable", f"{path.name} cannot be read: {error.strerror}", "let the hive's user read the file"
        ) from None
    if size < part.least_bytes:
        raise Failed(
            "model_truncated",
            f"{path.name} is cut off: its header promises {part.least_bytes} bytes and the file has {size}",
            "copy or download the file again",
        )
    return replace(part, file_bytes=size)


class _Reader:
    """Reads one file's header from its start. Long lists (the vocabulary) are counted, not kept."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name

    def read(self) -> _Part:
        """The header, and how long the file must be at least."""
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
        found: list[Tensor] = []
        longest = 0
        for _ in range(tensors):
            tensor, offset = self._tensor()
            found.append(tensor)
            longest = max(longest, offset + tensor.size_bytes)
        alignment = int(values.get("general.alignment", _DEFAULT_ALIGNMENT)) or _DEFAULT_ALIGNMENT
        start = -(-self._file.tell() // alignment) * alignment
        return _Part(values, found, data_start=start, least_bytes=start + longest)

    def _tensor(self) -> tuple[Tensor, int]:
        """A tensor and where its data begins, in bytes after the header."""
        name = self._string()
        shape = tuple(self._number("<Q") for _ in range(self._count("<I")))
        kind, offset = self._number("<I"), self._number("<Q")
        return Tensor(name, shape, _size_bytes(shape, kind)), offset

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


def _size_bytes(shape: tuple[int, ...], kind: int) -> int:
    # Brings numpy along, which an agent that starts no worker has no use for.
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # noqa: PLC0415

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except ValueError:
        # A type that is newer than the gguf package.
        return 0
    return prod(shape) // block * block_bytes
