"""What an ansible-playbook did, read from what it printed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

_RECAP = re.compile(r"^(?P<host>\S+) +: (?P<counts>ok=.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """Its counts for each host (ok, changed, unreachable, failed, …) and all it said."""

    status: int
    counts: Mapping[str, Mapping[str, int]]
    output: str
    seconds: float

    @classmethod
    def of_process(cls, done: subprocess.CompletedProcess[str], seconds: float) -> Run:
        """The run of a process that has ended, whose stdout and stderr are one text."""
        counts = {
            found["host"]: {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", found["counts"])}
            for found in _RECAP.finditer(done.stdout)
        }
        return cls(done.returncode, counts, done.stdout, seconds)

    @property
    def changed(self) -> dict[str, int]:
        """How many tasks changed something, for each host."""
        return {host: counts["changed"] for host, counts in self.counts.items()}

    @property
    def failed(self) -> dict[str, bool]:
        """Whether a host failed or could not be reached."""
        return {host: counts["failed"] + counts["unreachable"] > 0 for host, counts in self.counts.items()}

    @property
    def words(self) -> str:
        """All it said, its lines joined again that Ansible broke."""
        return " ".join(self.output.split())

    def of(self, host: str) -> str:
        """The words about one host: what came of each task there, with its message."""
        about = re.findall(rf"^\w+: \[{host}\](?s:.*?)(?=^\w+: \[|^\[|^(?:TASK|PLAY) |\Z)", self.output, re.MULTILINE)
        return " ".join(" ".join(about).split())
