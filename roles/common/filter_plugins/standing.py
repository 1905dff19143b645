"""Says of a file or folder as a role's table has it what stands there once it is made, in the words of `look.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def folder_standing(place: Mapping[str, str]) -> str:
    """``directory MODE OWNER GROUP`` of a place with ``mode`` and ``owner``, whose group has the owner's name."""
    return f"directory {place['mode']} {place['owner']} {place['owner']}"


def file_standing(place: Mapping[str, str], content: str) -> str:
    """``file MODE OWNER GROUP SHA256``, as above, of a file with this content."""
    return f"file {place['mode']} {place['owner']} {place['owner']} {hashlib.sha256(content.encode()).hexdigest()}"


def places(names: Iterable[str], folder: str, source: str, owner: str, mode: str) -> list[dict[str, str]]:
    """A place for each name in a folder on the host, with ``source``: where the same lies on the controller."""
    return [{"path": f"{folder}/{name}", "source": f"{source}/{name}", "owner": owner, "mode": mode} for name in names]


class FilterModule:
    """What Ansible looks for in this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Each function by the name that tasks know."""
        return {
            "common_folder_standing": folder_standing,
            "common_file_standing": file_standing,
            "common_places": places,
        }
