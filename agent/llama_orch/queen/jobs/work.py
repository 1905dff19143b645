"""What a job does, step by step. Each step begins by ending what an earlier attempt left, so it may be repeated."""

from __future__ import annotations

import asyncio
import contextlib

from llama_orch.contract.common import Problem
from llama_orch.contract.queen import JobKind, JobStatus

from ..ansible import failures, preflight
from ..ansible.ssh import Ssh
from ..inventory.view import Host
from ..records import JobRecord
from .kind import Kind
from .parts import Parts
from .progress import FALLBACK_TASKS, GUESSED_TASKS
from .provision import Provision
from .remedy import Remedy
from .remove import Remove
from .running import RunningJob


class JobWork:
    """The steps that all kinds of jobs have, and the jobs that are in memory."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._kinds: dict[JobKind, Kind] = {
            "provision": Provision(parts),
            "remove": Remove(parts),
            "remedy": Remedy(parts),
        }
        self._running: dict[str, RunningJob] = {}
        self._stop = asyncio.Event()

    def running(self, job_id: str) -> RunningJob:
        """What is kept of the job in memory, from the first that asks for it until it ends."""
        if job_id not in self._running:
            self._running[job_id] = RunningJob(job_id, self._parts, self._stop)
        return self._running[job_id]

    def stop(self) -> None:
        """The queen stops: running steps end what they started and stay unfinished."""
        self._stop.set()
        for running in self._running.values():
            running.interrupt.set()

    @property
    def stopping(self) -> bool:
        """Whether jobs are to be left for the next start."""
        return self._stop.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait so long. Raises CancelledError where the queen stops meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
            raise asyncio.CancelledError("the queen stops")

    async def begin(self, job: JobRecord) -> None:
        """Fence what an earlier attempt left and show that the job runs."""
        running, kind = self.running(job.job_id), self._kinds[job.kind]
        again = job.started_at is not None
        await running.clear()
        if job.status is JobStatus.CANCELLING:
            running.interrupt.set()
        await self._parts.store.jobs.start(job.job_id)
        await kind.begin(job)
        story = await running.tell()
        story.phase("the queen was restarted: the job goes on" if again else f"{kind.title(job)} begins")

    async def preflight(self, job: JobRecord) -> Problem | None:
        """First contact: the host answers, takes the key, lets us use sudo."""
        running, inventory = self.running(job.job_id), self._parts.inventory
        await running.clear()
        if (problem := _lost_password(running, job)) is not None:
            return problem
        # The files may be newer than the view: this job must see what its playbook will see.
        await inventory.refresh()
        host = inventory.hosts.get(job.node_name)
        if host is None:
            return failures.classify("no hosts matched", host=job.node_name)
        if host.name in inventory.groups:
            return failures.named_like_a_group(host.name)
        if host.is_own_machine and not self._parts.change_own_machine:
            return failures.own_machine(host.name)
        running.story.phase(f"logging in as {host.ssh_user} at {host.ssh_host} port {host.ssh_port}")
        problem = await running.unless_interrupted(self._look(running, host))
        if problem is None:
            await self._kinds[job.kind].prepare(running, host)
        return problem

    async def play(self, job: JobRecord) -> Problem | None:
        """The playbook of this kind of job, on this one host."""
        running, kind = self.running(job.job_id), self._kinds[job.kind]
        await running.clear()
        if (problem := _lost_password(running, job)) is not None:
            return problem
        playbook, story = kind.playbook(job), running.story
        learnt = await self._parts.store.learnt.tasks_of(playbook)
        story.phase(f"running playbooks/{playbook}.yml")
        story.progress.expect(learnt or GUESSED_TASKS.get(playbook, FALLBACK_TASKS))
        running.played = True
        result = await running.run(playbook, job.node_name, kind.variables(job))
        if result.interrupted:
            return running.interrupted()
        if result.succeeded(job.node_name):
            # The playbook went through, and is not run again for this.
            with contextlib.suppress(Exception):
                await self._parts.store.learnt.learn(playbook, result.tasks)
            story.progress.playbook_ended()
            return None
        return failures.of_run(result.failures, result.output, result.status)

    async def verify(self, job: JobRecord) -> Problem | None:
        """Whether the playbook brought about what it was for."""
        host = self._parts.inventory.hosts.get(job.node_name)
        return None if host is None else await self._kinds[job.kind].verify(self.running(job.job_id), host)

    async def finish(self, job: JobRecord, problem: Problem | None) -> None:
        """Nothing of the job runs any more: show how it ended. May be repeated."""
        running = self.running(job.job_id)
        await running.clear()
        story = await running.tell()
        problem = await self._kinds[job.kind].settle(running, job, problem)
        running.password = None
        status = JobStatus.SUCCEEDED
        if problem is not None:
            status = JobStatus.CANCELLED if problem.code == failures.CANCELLED.code else JobStatus.FAILED
        await story.flush()
        await self._parts.store.jobs.end(job.job_id, status, problem)
        await story.end(status, problem and problem.message)
        self.forget(job.job_id)

    async def give_up(self, job: JobRecord) -> None:
        """Close a job that cannot be finished as it should, so that it does not run for ever. May be repeated."""
        await self._kinds[job.kind].give_up(job, failures.INTERNAL)
        await self._parts.store.jobs.end(job.job_id, JobStatus.FAILED, failures.INTERNAL)
        self.forget(job.job_id)

    def forget(self, job_id: str) -> None:
        """Nothing of the job, which has ended, is kept in memory."""
        self._running.pop(job_id, None)
        self._parts.events.forget(job_id)

    async def _look(self, running: RunningJob, host: Host) -> Problem | None:
        runs = self._parts.runs
        ssh = Ssh(host, self._parts.ssh, runs.prepare(runs.next_run_id(running.job_id)))
        return await preflight.check(ssh, running.password, self._parts.known_hosts)


def _lost_password(running: RunningJob, job: JobRecord) -> Problem | None:
    return failures.PASSWORD_LOST if job.had_password and running.password is None else None
