"""What can be said of a model's file before llama.cpp opens it. Messages name the file, never its folder."""

from __future__ import annotations

import re
from pathlib import Path

from ..generation import CannotServe

# GGUF specification: magic, version, tensor count and key count take 24 bytes.
_MAGIC = b"GGUF"
_HEADER_BYTES = 24
# As llama.cpp names the parts of a model that is split.
_PART = re.compile(r"(?P<stem>.+)-[0-9]{5}-of-(?P<count>[0-9]{5})\.gguf")


def parts(path: Path) -> list[Path]:
    """All files of the model that begins with this one: those beside it with the same name but for their number."""
    if (first := _PART.fullmatch(path.name)) is None:
        return [path]
    try:
        beside = sorted(path.parent.iterdir())
    except OSError:
        return [path]
    matches = ((one, _PART.fullmatch(one.name)) for one in beside)
    return [one for one, found in matches if found and found.groups() == first.groups()] or [path]


def check(path: Path) -> None:
    """Raise CannotServe where `path` is no readable GGUF file."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        raise CannotServe(
            "model_unreadable", f"the model's file {path.name} does not exist", "download the model again"
        ) from None
    except OSError as error:
        raise CannotServe(
            "model_unreadable",
            f"the model's file {path.name} cannot be read: {error.strerror}",
            "let the hive's service user read the file and the folders above it",
        ) from None
    if not head.startswith(_MAGIC[: len(head)]):
        raise CannotServe(
            "model_unreadable",
            f"{path.name} is not a GGUF file: it does not begin with GGUF",
            "name a GGUF file; models in other formats must be converted first",
        )
    if len(head) < _HEADER_BYTES:
        raise CannotServe(
            "model_truncated",
            f"{path.name} has only {len(head)} bytes, which is less than a GGUF header",
            "delete the model and download it again",
        )
