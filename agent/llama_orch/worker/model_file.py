"""What can be said of a model's file before llama.cpp opens it. Messages name the file, never its folder."""

from __future__ import annotations

from pathlib import Path

from .generation import CannotServe

# GGUF specification: magic, version, tensor count and key count take 24 bytes.
_MAGIC = b"GGUF"
_HEADER_BYTES = 24


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
