"""The tasks that stand in a file of a role or in a playbook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def tasks_of(entries: Any) -> list[dict[str, Any]]:
    """All of a list of tasks or plays, those within blocks too."""
    found: list[dict[str, Any]] = []
    for entry in entries or []:
        found.append(entry)
        for key in ("pre_tasks", "tasks", "post_tasks", "block", "rescue", "always"):
            found += tasks_of(entry.get(key))
    return found
