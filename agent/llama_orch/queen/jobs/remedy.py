"""Mends what is wrong with a node's GPUs, by the playbook of the remedy's name."""

from __future__ import annotations

import asyncio

from llama_orch.contract.common import Problem
from llama_orch.contract.devices import Remedy as RemedyName

from ..ansible import failures
from ..inventory.view import Host
from ..records import JobRecord, RemedyOrder
from .parts import Parts, Variables
from .running import RunningJob

# Starts what a remedy stopped on the host, where the remedy's own run could not.
RESUME = "resume"


class Remedy:
    """Jobs of the kind `remedy`. The node stays what it is: whether its hive answers is what the prober sees."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def title(self, job: JobRecord) -> str:
        """See Kind."""
        order = _of(job)
        by_itself = f", as the site allows it for {order.condition.value}," if order.condition else ""
        return f"the remedy {order.remedy.value}{by_itself}"

    def playbook(self, job: JobRecord) -> str:
        """See Kind."""
        return _of(job).remedy.value

    def variables(self, job: JobRecord) -> Variables:
        """The GPU that it is for, and since when a reboot counts as done."""
        order = _of(job)
        variables: Variables = {"gpu_remedy_gpu": order.gpu} if order.gpu else {}
        if order.remedy is RemedyName.REBOOT and job.started_at is not None:
            variables["gpu_remedy_began"] = int(job.started_at.timestamp())
        return variables

    async def begin(self, job: JobRecord) -> None:
        """Nothing shows on the node."""

    async def prepare(self, running: RunningJob, host: Host) -> None:
        """Nothing is to be done."""

    async def verify(self, running: RunningJob, host: Host) -> Problem | None:
        """The playbook itself asks the hive whether it helped."""
        return None

    async def settle(self, running: RunningJob, job: JobRecord, problem: Problem | None) -> Problem | None:
        """Start again what a run that was cut short left stopped on the host, or say that it may be."""
        if problem is None:
            return None
        began = running.played or job.started_at is not None
        mends_nothing = _of(job).remedy is RemedyName.COLLECT_GPU_REPORT
        if problem.code not in failures.CUT_SHORT or mends_nothing or not began:
            return problem
        if problem.code not in {failures.CANCELLED.code, failures.TIMED_OUT.code}:
            return failures.may_be_stopped(problem, job.node_name)
        running.story.phase(f"running playbooks/{RESUME}.yml: what the remedy stopped is started again")
        result = await running.run(RESUME, job.node_name, {}, running.stop)
        if result.interrupted:
            raise asyncio.CancelledError("the queen stops")
        why = result.problem(job.node_name)
        return problem if why is None else failures.may_be_stopped(problem, job.node_name, why)

    async def give_up(self, job: JobRecord, problem: Problem) -> None:
        """Nothing shows on the node."""


def _of(job: JobRecord) -> RemedyOrder:
    if job.order is None:
        raise ValueError(f"job {job.job_id} is a remedy and does not say which")
    return job.order
