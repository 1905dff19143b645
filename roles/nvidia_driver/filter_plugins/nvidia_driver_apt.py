"""Reads what apt says of the packages that a plan for the driver names."""

from __future__ import annotations

import re
from typing import Any

Facts = dict[str, Any]


def offered_by_apt(policy: str, plan: Facts) -> Facts:
    """What ``apt-cache policy`` of a plan's packages and headers says, in C's locale.

    ``offered``: whether the branch can be had; ``missing``: packages that cannot; ``wanted``: what to install, with
    the branch where another one is installed or none; ``headers``: those of the plan's that can be had.
    """
    known: dict[str, list[str]] = {}
    installed: dict[str, str] = {}
    name = ""
    for line in policy.splitlines():
        if found := re.match(r"(\S+):$", line):
            name = found[1]
        elif found := re.match(r"  Installed: (\S+)", line):
            installed[name] = found[1]
        elif found := re.match(r" (?:\*{3}|   ) (\S+) -?\d+", line):
            known.setdefault(name, []).append(found[1])
    branch = plan["branch"]

    def in_branch(name: str) -> bool:
        return any(_is_of(version, branch) for version in known.get(name, []))

    def spelled(name: str) -> str:
        moves = plan["pinned"] and in_branch(name) and not _is_of(installed[name], branch)
        return f"{name}={branch}.*" if moves else name

    headers = [name for name in plan["headers"] if name in known]
    return {
        "offered": in_branch(plan["packages"][0]),
        "missing": [name for name in plan["packages"] if name not in known],
        "wanted": [spelled(name) for name in plan["packages"]] + headers,
        "headers": headers,
    }


def _is_of(version: str, branch: int) -> bool:
    return version.startswith(f"{branch}.")


class FilterModule:
    """What Ansible looks for in this file."""

    def filters(self) -> Facts:
        """``policy | nvidia_driver_offered_by_apt(plan)``."""
        return {"nvidia_driver_offered_by_apt": offered_by_apt}
