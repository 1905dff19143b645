"""Finds in inventory files what Ansible would only warn of and then leave out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


class BrokenInventory(Exception):
    """Ansible cannot read the inventory, or it does not say what its author meant."""


def check_shape(paths: Iterable[Path]) -> None:
    """Find what Ansible would only warn of: a misspelt `hosts`, a group that is no mapping. Raises BrokenInventory."""
    for path in paths:
        if path.suffix not in {".yml", ".yaml"} or os.access(path, os.X_OK):
            continue
        try:
            document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        except (YAMLError, ValueError, RecursionError):
            continue  # Ansible says it with the line, in its own words
        if isinstance(document, dict) and "plugin" not in document:
            for group, content in document.items():
                _check_group(path.name, str(group), content)


def _check_group(file: str, group: str, content: object) -> None:
    if content is None:
        return
    if not isinstance(content, dict):
        raise BrokenInventory(f"{file}: the group '{group}' must hold hosts, children or vars")
    for key, value in content.items():
        if key not in {"hosts", "children", "vars"}:
            raise BrokenInventory(f"{file}: '{key}' in the group '{group}' is none of hosts, children, vars")
        if value is not None and not isinstance(value, dict):
            raise BrokenInventory(f"{file}: '{key}' of the group '{group}' must be a mapping")
    for child, inner in (content.get("children") or {}).items():
        _check_group(file, str(child), inner)
