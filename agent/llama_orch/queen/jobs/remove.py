"""Takes the hive off a host and forgets the node."""

from __future__ import annotations

import asyncio

from llama_orch.contract.common import Problem

from ..ansible import failures
from ..fleet.states import NodeEvent
from ..inventory.view import Host
from ..records import JobRecord
from .parts import Parts, Variables
from .running import RunningJob


class Remove:
    """Jobs of the kind `remove`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def title(self, job: JobRecord) -> str:
        """See Kind."""
        return "remove"

    def playbook(self, job: JobRecord) -> str:
        """See Kind."""
        return "remove"

    def variables(self, job: JobRecord) -> Variables:
        """See Kind."""
        return {}

    async def begin(self, job: JobRecord) -> None:
        """See Kind."""
        await self._parts.states.take(job.node_name, NodeEvent.REMOVE_BEGAN, job_id=job.job_id)

    async def prepare(self, running: RunningJob, host: Host) -> None:
        """Nothing is to be done."""

    async def verify(self, running: RunningJob, host: Host) -> Problem | None:
        """What is gone answers no question."""
        return None

    async def settle(self, running: RunningJob, job: JobRecord, problem: Problem | None) -> Problem | None:
        """The node is forgotten, by force also where the hive could not be taken off; one that was cancelled is not."""
        cancelled = problem is not None and problem.code == failures.CANCELLED.code
        if problem is not None and (cancelled or not job.force):
            await self._fail(job, problem)
            return problem
        if problem is not None:
            running.story.phase(f"forgotten as asked by force, although: {problem.message}"[:500])
        await self._forget(job.node_name)
        return None

    async def give_up(self, job: JobRecord, problem: Problem) -> None:
        """See Kind."""
        if job.node_name in self._parts.inventory.hosts:
            await self._fail(job, problem)

    async def _fail(self, job: JobRecord, problem: Problem) -> None:
        await self._parts.states.take(job.node_name, NodeEvent.REMOVE_FAILED, problem=problem, job_id=job.job_id)

    async def _forget(self, name: str) -> None:
        inventory, known_hosts = self._parts.inventory, self._parts.known_hosts
        host = inventory.hosts.get(name)
        self._parts.tokens.forget(name)
        await inventory.unregister(name)
        others = [other for other in inventory.hosts.values() if other.name != name]
        if host is not None and all((o.ssh_host, o.ssh_port) != (host.ssh_host, host.ssh_port) for o in others):
            await asyncio.to_thread(known_hosts.forget, host.ssh_host, host.ssh_port)
        await self._parts.states.forget(name)
