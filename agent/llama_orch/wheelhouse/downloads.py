"""Wheels that are fetched once and kept: sources change more often than what they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.files import filled_once, locked
from llama_orch.wheelhouse.locks import Pin, Target
from llama_orch.wheelhouse.pip import download


def wheels_of(pins: Sequence[Pin], target: Target, cache: Path, what: str) -> list[Path]:
    """The wheels of these pins, from the cache where they were fetched before. Raises WheelhouseError."""
    text = "\n".join(pin.requirement() for pin in pins)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = cache / "downloads" / f"{key}-{target.label()}"

    def fetch(into: Path) -> None:
        download(pins, target, into, what)

    with locked(folder.with_name(folder.name + ".lock"), "another download of the same wheels"):
        filled_once(folder, fetch)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != len(pins):
        raise WheelhouseError(f"{folder} holds {len(wheels)} wheels, not {len(pins)}; remove it and try again")
    return wheels
