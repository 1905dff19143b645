"""An answer that is text already: what is no JSON, and what is so long that making it would hold up everything else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rendered:
    """The bytes of an answer; JSON of the type that the operation answers unless it says otherwise."""

    body: bytes
    content_type: str = "application/json"
