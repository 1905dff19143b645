"""Reads the header of a GGUF file: its values, its tensors, and whether the file is whole.

The format: github.com/ggml-org/ggml, docs/gguf.md. Read here rather than with gguf's own reader, which maps the whole
file and takes seconds over the vocabulary of a large model. What the values mean is `model_facts.py`.

A file says itself how much there is of everything, so all of it is counted, and nothing is computed of numbers that no
tensor can have. Even so it is read in a process that may be ended: `model_reading.py`.
"""

from __future__ import annotations

import re
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from ..problems import Failed

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# No real model comes near these; a damaged one easily does. The largest vocabularies of 2026 take 11 MB of a header, in
# less than a million texts. Of all parts of a model together:
MOST_HEADER_BYTES = 64 * 1024 * 1024
MOST_LISTED = 4_000_000
MOST_ENTRIES = 200_000
MOST_KEPT_BYTES = 8 * 1024 * 1024
MOST_PARTS = 1000
# ggml's GGML_MAX_DIMS, and what its signed 64 bits hold.
_MOST_DIMENSIONS = 4
_MOST = 2**63 - 1
# The specification's longest key; ggml's tensors have names of less than 64.
_LONGEST_NAME = 65_535
_KEPT_LIST = 1024
_DEFAULT_ALIGNMENT = 32
_MOST_ALIGNMENT = 2**20
# Values in a block, and its bytes, by the number of a tensor's type: `GGML_QUANT_SIZES` of the gguf package, which
# brings numpy along. A test compares them.
TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
_PART_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.gguf)\Z", re.IGNORECASE)


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
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= MOST_PARTS:
        return None
    return match["stem"], int(match["number"]), int(match["count"])


def part_names(name: str) -> list[str]:
    """The names of all parts of the model that a file belongs to; its own name alone where it is whole."""
    parts = split_name(name)
    if parts is None:
        return [name]
    stem, _, count = parts
    suffix = name[-len(".gguf") :]
    return [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1)]


def read(path: Path) -> Header:
    """Check a model's files and read their headers. Raises Failed where they are missing, cut off or no GGUF."""
    budget = _Budget(MOST_HEADER_BYTES, MOST_LISTED, MOST_ENTRIES, MOST_KEPT_BYTES)
    parts = [_checked(path.parent / name, budget) for name in part_names(path.name)]
    return Header(
        values=parts[0].values,
        tensors=tuple(tensor for part in parts for tensor in part.tensors),
        file_bytes=sum(part.file_bytes for part in parts),
        data_bytes=sum(part.file_bytes - part.data_start for part in parts),
    )


@dataclass
class _Budget:
    """What may still be read of a model, and what may still be kept of it."""

    header_bytes: int
    listed: int
    entries: int
    kept_bytes: int


def _checked(path: Path, budget: _Budget) -> _Part:
    try:
        found = path.stat()
        size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            raise Failed("model_unreadable", f"{path.name} is no file", "name a .gguf file", retry=True)
        with path.open("rb") as file:
            part = _Reader(file, path.name, budget).read()
    except FileNotFoundError:
        raise Failed(
            "model_not_found", f"{path.name} is not there", "download the model, or correct its path"
        ) from None
    except OSError as error:
        raise Failed(
            "model_unreadable",
            f"{path.name} cannot be read: {error.strerror}",
            "let the hive's user read the file",
            retry=True,
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

    def __init__(self, file: BinaryIO, name: str, budget: _Budget) -> None:
        self._file = file
        self._name = name
        self._budget = budget

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
        tensors, entries = self._entries(), self._entries()
        values: dict[str, Any] = {}
        for _ in range(entries):
            key = self._text(_LONGEST_NAME)
            values[key] = self._value(self._number("<I"))
        found: list[Tensor] = []
        longest = 0
        for _ in range(tensors):
            tensor, offset = self._tensor()
            found.append(tensor)
            longest = max(longest, offset + tensor.size_bytes)
        alignment = self._alignment(values.get("general.alignment", _DEFAULT_ALIGNMENT))
        start = -(-self._file.tell() // alignment) * alignment
        return _Part(values, found, data_start=start, least_bytes=start + longest)

    def _alignment(self, value: Any) -> int:
        if type(value) is not int or not 0 <= value <= _MOST_ALIGNMENT or value & (value - 1):
            raise self._damaged("general.alignment is no power of two")
        return value or _DEFAULT_ALIGNMENT

    def _tensor(self) -> tuple[Tensor, int]:
        """A tensor and where its data begins, in bytes after the header."""
        name = self._text(_LONGEST_NAME)
        dimensions = self._number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise self._damaged(f"a tensor of {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        kind, offset = self._number("<I"), self._number("<Q")
        size = self._size_bytes(shape, kind)
        if offset > _MOST - size:
            raise self._damaged("a tensor that ends beyond all files")
        return Tensor(name, shape, size), offset

    def _size_bytes(self, shape: tuple[int, ...], kind: int) -> int:
        values = 1
        for length in shape:
            values *= length
            if values > _MOST or length > _MOST:
                raise self._damaged("a tensor of more values than can be counted")
        # A type that is newer than this file.
        block, block_bytes = TYPES.get(kind, (1, 0))
        size = values // block * block_bytes
        if size > _MOST:
            raise self._damaged("a tensor larger than all files")
        return size

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text(MOST_KEPT_BYTES)
        if kind == _ARRAY:
            return self._array(self._number("<I"), self._number("<Q"))
        raise self._damaged(f"a value of unknown type {kind}")

    def _array(self, kind: int, count: int) -> Any:
        if kind in _SCALARS:
            size = struct.calcsize(_SCALARS[kind])
            if count <= _KEPT_LIST:
                self._keep(count * size)
                return [self._number(_SCALARS[kind]) for _ in range(count)]
            self._skip(size * count)
            return count
        if kind != _STRING or count > self._budget.listed:
            raise self._damaged("a list that cannot be")
        self._budget.listed -= count
        for _ in range(count):
            self._skip(self._number("<Q"))
        return count

    def _text(self, longest: int) -> str:
        length = self._number("<Q")
        if length > longest:
            raise self._damaged(f"a text of {length} bytes")
        self._keep(length)
        return self._bytes(length).decode(errors="replace")

    def _entries(self) -> int:
        count = self._number("<Q")
        if count > self._budget.entries:
            raise self._damaged(f"{count} entries")
        self._budget.entries -= count
        return count

    def _keep(self, length: int) -> None:
        self._budget.kept_bytes -= length
        if self._budget.kept_bytes < 0:
            raise self._damaged(f"more than {MOST_KEPT_BYTES} bytes of texts and numbers")

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _skip(self, length: int) -> None:
        if length < 4096:
            self._bytes(length)
        else:
            self._spend(length)
            self._file.seek(length, 1)

    def _bytes(self, length: int) -> bytes:
        self._spend(length)
        found = self._file.read(length)
        if len(found) < length:
            raise Failed("model_truncated", f"{self._name} ends within its header", "copy or download the file again")
        return found

    def _spend(self, length: int) -> None:
        self._budget.header_bytes -= length
        if self._budget.header_bytes < 0:
            raise self._damaged(f"it is longer than {MOST_HEADER_BYTES} bytes")

    def _damaged(self, what: str) -> Failed:
        return Failed("model_unreadable", f"the header of {self._name} is damaged: {what}", "download the file again")
