"""Finds CUDA wheels in a wheelhouse on the controller, where those for several generations stand beside each other."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    """What Ansible looks for in this file."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """Manifests of the wheels whose path begins as a term does, with ``link``: the name by which each is found."""
        found = [Path(path) for term in terms for path in sorted(glob.glob(f"{glob.escape(term)}*/manifest.json"))]  # noqa: PTH207
        return [{**_read(path), "link": path.parent.name} for path in found if path.with_name("wheels.tar").is_file()]


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnsibleLookupError(
            f"{path} on the controller cannot be read: {error}. Remove its folder and run `make wheelhouse-cuda`."
        ) from None
