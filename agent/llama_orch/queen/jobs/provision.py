"""Makes a host a hive: first contact, the playbook, and the hive's own answer."""

from __future__ import annotations

import asyncio
import time

from llama_orch.contract.common import Problem

from ..fleet.hives import HiveSilent, NoTokenYet
from ..fleet.states import NodeEvent
from ..inventory.view import Host
from ..records import JobRecord
from .parts import Parts, Variables
from .running import RunningJob

_ASK_AGAIN_S = 1.0


class Provision:
    """Jobs of the kind `provision`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def title(self, job: JobRecord) -> str:
        """See Kind."""
        return "provision"

    def playbook(self, job: JobRecord) -> str:
        """See Kind."""
        return "hive"

    def variables(self, job: JobRecord) -> Variables:
        """See Kind."""
        return {}

    async def begin(self, job: JobRecord) -> None:
        """See Kind."""
        await self._parts.states.take(job.node_name, NodeEvent.PROVISION_BEGAN, job_id=job.job_id)

    async def prepare(self, running: RunningJob, host: Host) -> None:
        """Let the playbook make a new token where the machine is another than the one that has the token."""
        key = self._parts.known_hosts.key_of(host.ssh_host, host.ssh_port)
        if key is not None and await asyncio.to_thread(self._parts.tokens.give_to, host.name, key.fingerprint):
            running.story.phase("another machine had this node's token: a new one is made")

    async def verify(self, running: RunningJob, host: Host) -> Problem | None:
        """The hive answers an authenticated question with the id that is expected."""
        if host.templated:
            return None
        running.story.phase(f"asking the hive at {host.hive_address} port {host.hive_port} who it is")
        return await running.unless_interrupted(self._wait_for_hive(host))

    async def settle(self, running: RunningJob, job: JobRecord, problem: Problem | None) -> Problem | None:
        """See Kind."""
        ended = NodeEvent.PROVISION_SUCCEEDED if problem is None else NodeEvent.PROVISION_FAILED
        if job.node_name in self._parts.inventory.hosts:
            await self._parts.states.take(job.node_name, ended, problem=problem, job_id=job.job_id)
        else:
            await self._parts.states.forget(job.node_name)
        return problem

    async def give_up(self, job: JobRecord, problem: Problem) -> None:
        """See Kind."""
        if job.node_name in self._parts.inventory.hosts:
            failed = NodeEvent.PROVISION_FAILED
            await self._parts.states.take(job.node_name, failed, problem=problem, job_id=job.job_id)

    async def _wait_for_hive(self, host: Host) -> Problem | None:
        deadline = time.monotonic() + self._parts.verify_timeout_s
        while True:
            try:
                await self._parts.states.seen(host.name, await self._parts.client.ask(host))
            except HiveSilent as silence:
                problem = silence.problem.model_copy(update={"host": host.name})
            except NoTokenYet:
                problem = Problem(
                    code="hive_token_missing",
                    message=f"the playbook made no token for {host.name} in the secrets folder",
                    what_to_do="Check secrets_dir in the queen's settings and hive_secrets_dir in the inventory.",
                    host=host.name,
                )
            else:
                return None
            if time.monotonic() > deadline:
                return problem
            await asyncio.sleep(_ASK_AGAIN_S)
