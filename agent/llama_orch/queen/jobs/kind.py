"""What the kinds of jobs differ in; `work.py` does what all have in common."""

from __future__ import annotations

from typing import Protocol

from llama_orch.contract.common import Problem

from ..inventory.view import Host
from ..records import JobRecord
from .parts import Variables
from .running import RunningJob


class Kind(Protocol):
    """One kind of job. Everything here may be repeated: a queen that was killed does her last step again."""

    def title(self, job: JobRecord) -> str:
        """What the job's story says that begins."""
        ...

    def playbook(self, job: JobRecord) -> str:
        """The name of its playbook."""
        ...

    def variables(self, job: JobRecord) -> Variables:
        """What its playbook is given beside what all are given."""
        ...

    async def begin(self, job: JobRecord) -> None:
        """Show on the node that the job works on it."""
        ...

    async def prepare(self, running: RunningJob, host: Host) -> None:
        """The host lets us in: what is to be done before the playbook."""
        ...

    async def verify(self, running: RunningJob, host: Host) -> Problem | None:
        """Whether the playbook brought about what it was for."""
        ...

    async def settle(self, running: RunningJob, job: JobRecord, problem: Problem | None) -> Problem | None:
        """The job ends so: what that makes of the node; answers how the job ends."""
        ...

    async def give_up(self, job: JobRecord, problem: Problem) -> None:
        """The job cannot be settled: show on the node that it failed."""
        ...
