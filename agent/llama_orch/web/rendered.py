"""An answer that is JSON already: one so long that making it in one go would hold up everything else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rendered:
    """The JSON of the type that the operation answers."""

    body: bytes
