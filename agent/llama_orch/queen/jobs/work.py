"""What a job does, step by step. Each step begins by ending what an earlier attempt left, so it may be repeated."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

from llama_orch.contract.common import Problem
from llama_orch.contract.devices import Remedy
from llama_orch.contract.queen import JobStatus

from ..ansible import failures, preflight
from ..ansible.runs import RunResult, Runs, RunSpec
from ..ansible.ssh import Ssh, SshSetup
from ..ansible.ssh_keys import KnownHosts
from ..fleet.hive_tokens import HiveTokens
from ..fleet.hives import HiveClient, HiveSilent, NoTokenYet
from ..fleet.states import NodeEvent, NodeStates
from ..inventory.view import Host, Inventory
from ..records import JobRecord
from ..store.store import Store
from .events import JobEvents, Story
from .progress import FALLBACK_TASKS, GUESSED_TASKS

log = logging.getLogger(__name__)

# A remedy's playbook has its name.
PLAYBOOKS = {"provision": "hive", "remove": "remove"}
# Starts what a remedy stopped on the host, where the remedy's own run could not.
RESUME = "resume"
_BEGAN = {"provision": NodeEvent.PROVISION_BEGAN, "remove": NodeEvent.REMOVE_BEGAN}
_ASK_AGAIN_S = 1.0
# A run whose process was lost, as for lack of memory, is started again after these pauses.
RUN_AGAIN_S = (2.0, 10.0)


class JobWork:
    """The steps of provisioning and removing, and what a running job keeps in memory."""

    def __init__(
        self,
        *,
        store: Store,
        inventory: Inventory,
        states: NodeStates,
        events: JobEvents,
        runs: Runs,
        client: HiveClient,
        tokens: HiveTokens,
        known_hosts: KnownHosts,
        ssh: SshSetup,
        extra_vars: dict[str, str | int | bool],
        verify_timeout_s: float,
        change_own_machine: bool,
        ran: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._inventory = inventory
        self._states = states
        self._events = events
        self._runs = runs
        self._client = client
        self._tokens = tokens
        self._known_hosts = known_hosts
        self._ssh = ssh
        self._extra_vars = extra_vars
        self._verify_timeout_s = verify_timeout_s
        self._change_own_machine = change_own_machine
        self._ran = ran
        self._passwords: dict[str, str] = {}
        self._stories: dict[str, Story] = {}
        self._interrupts: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._played: set[str] = set()
        self._stop = asyncio.Event()

    def keep_password(self, job_id: str, password: str | None) -> None:
        """Keep a sudo password in memory until the job ends."""
        if password is not None:
            self._passwords[job_id] = password

    def interrupt_of(self, job_id: str) -> asyncio.Event:
        """Set when the job is to be cancelled or the queen stops."""
        return self._interrupts[job_id]

    def stop(self) -> None:
        """The queen stops: running steps end what they started and stay unfinished."""
        self._stop.set()
        for interrupt in self._interrupts.values():
            interrupt.set()

    @property
    def stopping(self) -> bool:
        """Whether jobs are to be left for the next start."""
        return self._stop.is_set()

    async def pause(self, seconds: float) -> None:
        """Wait so long. Raises CancelledError where the queen stops meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
            raise asyncio.CancelledError("the queen stops")

    async def pause_of(self, job_id: str, seconds: float) -> None:
        """Wait so long, or until the job is cancelled. Raises CancelledError where the queen stops meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._interrupts[job_id].wait(), seconds)
        if self.stopping:
            raise asyncio.CancelledError("the queen stops")

    async def begin(self, job: JobRecord) -> None:
        """Fence what an earlier attempt left and show that the job runs."""
        job_id, again = job.job_id, job.started_at is not None
        await self._runs.clear(job_id)
        if job.status is JobStatus.CANCELLING:
            self._interrupts[job_id].set()
        await self._store.jobs.start(job_id)
        # A remedy leaves the node what it is: whether its hive answers is what the prober sees meanwhile.
        if (event := _BEGAN.get(job.kind)) is not None:
            await self._states.take(job.node_name, event, job_id=job_id)
        story = self._stories[job_id] = await self._events.story(job_id)
        story.phase("the queen was restarted: the job goes on" if again else f"{_what(job)} begins")

    async def preflight(self, job: JobRecord) -> Problem | None:
        """First contact: the host answers, takes the key, lets us use sudo."""
        await self._runs.clear(job.job_id)
        if (problem := self._lost_password(job)) is not None:
            return problem
        # The files may be newer than the view: this job must see what its playbook will see.
        await self._inventory.refresh()
        host = self._inventory.hosts.get(job.node_name)
        if host is None:
            return failures.classify("no hosts matched", host=job.node_name)
        if host.name in self._inventory.groups:
            return failures.named_like_a_group(host.name)
        if host.is_own_machine and not self._change_own_machine:
            return failures.own_machine(host.name)
        self._story(job).phase(f"logging in as {host.ssh_user} at {host.ssh_host} port {host.ssh_port}")
        problem = await self._unless_interrupted(job, self._look(job, host))
        if problem is None and job.kind == "provision":
            await self._give_token(job, host)
        return problem

    async def _give_token(self, job: JobRecord, host: Host) -> None:
        """Let the playbook make a new token where the machine is another than the one that has the token."""
        key = self._known_hosts.key_of(host.ssh_host, host.ssh_port)
        if key is not None and await asyncio.to_thread(self._tokens.give_to, host.name, key.fingerprint):
            self._story(job).phase("another machine had this node's token: a new one is made")

    async def play(self, job: JobRecord) -> Problem | None:
        """The playbook of this kind of job, on this one host."""
        job_id, name = job.job_id, job.node_name
        await self._runs.clear(job_id)
        if (problem := self._lost_password(job)) is not None:
            return problem
        playbook, story = _playbook(job), self._story(job)
        learnt = await self._store.learnt.tasks_of(playbook)
        story.phase(f"running playbooks/{playbook}.yml")
        story.progress.expect(learnt or GUESSED_TASKS.get(playbook, FALLBACK_TASKS))
        self._played.add(job_id)
        result = await self._run(job, playbook, self._extra_vars | _of_remedy(job), self._interrupts[job_id])
        if result.interrupted:
            return self._interrupted()
        if result.succeeded(name):
            # The playbook went through, and is not run again for this.
            with contextlib.suppress(Exception):
                await self._store.learnt.learn(playbook, result.tasks)
            story.progress.playbook_ended()
            return None
        return failures.of_run(result.failures, result.output, result.status)

    async def verify(self, job: JobRecord) -> Problem | None:
        """The hive answers an authenticated question with the id we expect."""
        host = self._inventory.hosts.get(job.node_name)
        if job.kind != "provision" or host is None or host.templated:
            return None
        self._story(job).phase(f"asking the hive at {host.hive_address} port {host.hive_port} who it is")
        return await self._unless_interrupted(job, self._wait_for_hive(host))

    async def finish(self, job: JobRecord, problem: Problem | None) -> None:
        """Nothing of the job runs any more: show how it ended. May be repeated."""
        job_id = job.job_id
        await self._runs.clear(job_id)
        story = self._stories.get(job_id) or await self._events.story(job_id)
        self._stories[job_id] = story
        problem = await self._settle_node(job, problem)
        self._passwords.pop(job_id, None)
        status = JobStatus.SUCCEEDED
        if problem is not None:
            status = JobStatus.CANCELLED if problem.code == failures.CANCELLED.code else JobStatus.FAILED
        await story.flush()
        await self._store.jobs.end(job_id, status, problem)
        await story.end(status, problem and problem.message)
        self._forget_job(job_id)

    async def give_up(self, job: JobRecord) -> None:
        """Close a job that cannot be finished as it should, so that it does not run for ever. May be repeated."""
        job_id, name = job.job_id, job.node_name
        problem = failures.INTERNAL
        if job.kind != "remedy" and name in self._inventory.hosts:
            removes = job.kind == "remove"
            event = NodeEvent.REMOVE_FAILED if removes else NodeEvent.PROVISION_FAILED
            await self._states.take(name, event, problem=problem, job_id=job_id)
        await self._store.jobs.end(job_id, JobStatus.FAILED, problem)
        self._forget_job(job_id)

    def forget_interrupt(self, job_id: str) -> None:
        """Nobody looks any more whether the job, which has ended, is to be interrupted."""
        self._interrupts.pop(job_id, None)

    def _forget_job(self, job_id: str) -> None:
        self._passwords.pop(job_id, None)
        self._stories.pop(job_id, None)
        self._interrupts.pop(job_id, None)
        self._played.discard(job_id)
        self._events.forget(job_id)

    async def _settle_node(self, job: JobRecord, problem: Problem | None) -> Problem | None:
        name = job.node_name
        if job.kind == "remedy":
            return problem and await self._settle_remedy(job, problem)
        if job.kind == "provision":
            ended = NodeEvent.PROVISION_SUCCEEDED if problem is None else NodeEvent.PROVISION_FAILED
            if name in self._inventory.hosts:
                await self._states.take(name, ended, problem=problem, job_id=job.job_id)
            else:
                await self._states.forget(name)
            return problem
        cancelled = problem is not None and problem.code == failures.CANCELLED.code
        if problem is not None and (cancelled or not job.force):
            await self._states.take(name, NodeEvent.REMOVE_FAILED, problem=problem, job_id=job.job_id)
            return problem
        if problem is not None:
            self._story(job).phase(f"forgotten as asked by force, although: {problem.message}"[:500])
        await self._forget(name)
        return None

    async def _settle_remedy(self, job: JobRecord, problem: Problem) -> Problem:
        """Start again what a run that was cut short left stopped on the host, or say that it may be."""
        began = job.job_id in self._played or job.started_at is not None
        if problem.code not in failures.CUT_SHORT or _remedy_of(job) is Remedy.COLLECT_GPU_REPORT or not began:
            return problem
        if problem.code not in {failures.CANCELLED.code, failures.TIMED_OUT.code}:
            return failures.may_be_stopped(problem, job.node_name)
        self._story(job).phase(f"running playbooks/{RESUME}.yml: what the remedy stopped is started again")
        result = await self._run(job, RESUME, self._extra_vars, self._stop)
        if result.interrupted:
            raise asyncio.CancelledError("the queen stops")
        if result.succeeded(job.node_name):
            return problem
        why = failures.of_run(result.failures, result.output, result.status)
        return failures.may_be_stopped(problem, job.node_name, why)

    async def _run(
        self, job: JobRecord, playbook: str, variables: dict[str, str | int | bool], interrupt: asyncio.Event
    ) -> RunResult:
        for pause in RUN_AGAIN_S:
            result = await self._run_once(job, playbook, variables, interrupt)
            if not result.lost:
                return result
            self._story(job).phase(f"the run's process ended without a result: it is started again in {pause:g} s")
            self._story(job).progress.again()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(interrupt.wait(), pause)
        return await self._run_once(job, playbook, variables, interrupt)

    async def _run_once(
        self, job: JobRecord, playbook: str, variables: dict[str, str | int | bool], interrupt: asyncio.Event
    ) -> RunResult:
        job_id, name, story = job.job_id, job.node_name, self._story(job)
        spec = RunSpec(self._runs.next_run_id(job_id), playbook, name, variables, self._passwords.get(job_id))
        result = await self._runs.run(spec, story.line, interrupt)
        # Where the store fails now, it is tried again until the job's end: nothing is run again for it.
        with contextlib.suppress(Exception):
            await story.flush()
        ended = "succeeded" if result.succeeded(name) else "failed"
        self._ran(playbook, "interrupted" if result.interrupted else ended)
        return result

    async def _forget(self, name: str) -> None:
        host = self._inventory.hosts.get(name)
        self._tokens.forget(name)
        await self._inventory.unregister(name)
        others = [other for other in self._inventory.hosts.values() if other.name != name]
        if host is not None and all((o.ssh_host, o.ssh_port) != (host.ssh_host, host.ssh_port) for o in others):
            await asyncio.to_thread(self._known_hosts.forget, host.ssh_host, host.ssh_port)
        await self._states.forget(name)

    async def _look(self, job: JobRecord, host: Host) -> Problem | None:
        job_id = job.job_id
        environment = self._runs.prepare(self._runs.next_run_id(job_id))
        ssh = Ssh(host, self._ssh, environment)
        return await preflight.check(ssh, self._passwords.get(job_id), self._known_hosts)

    async def _wait_for_hive(self, host: Host) -> Problem | None:
        deadline = time.monotonic() + self._verify_timeout_s
        while True:
            try:
                await self._states.seen(host.name, await self._client.ask(host))
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

    async def _unless_interrupted(self, job: JobRecord, work: Coroutine[Any, Any, Problem | None]) -> Problem | None:
        task = asyncio.create_task(work)
        interrupted = asyncio.create_task(self._interrupts[job.job_id].wait())
        try:
            await asyncio.wait({task, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            interrupted.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        if task.cancelled():
            await self._runs.clear(job.job_id)
            return self._interrupted()
        return task.result()

    def _interrupted(self) -> Problem:
        if self.stopping:
            # The durable engine must not see this step end: the next start repeats it.
            raise asyncio.CancelledError("the queen stops")
        return failures.CANCELLED

    def _lost_password(self, job: JobRecord) -> Problem | None:
        lost = job.had_password and job.job_id not in self._passwords
        return failures.PASSWORD_LOST if lost else None

    def _story(self, job: JobRecord) -> Story:
        return self._stories[job.job_id]


def _playbook(job: JobRecord) -> str:
    return PLAYBOOKS[job.kind] if job.treatment is None else job.treatment.remedy.value


def _of_remedy(job: JobRecord) -> dict[str, str | int | bool]:
    """The variables of a remedy's playbook: the GPU that it is for, and since when a reboot counts as done."""
    gpu = job.treatment and job.treatment.gpu
    variables: dict[str, str | int | bool] = {"gpu_remedy_gpu": gpu} if gpu else {}
    if _remedy_of(job) is Remedy.REBOOT and job.started_at is not None:
        variables["gpu_remedy_began"] = int(job.started_at.timestamp())
    return variables


def _remedy_of(job: JobRecord) -> Remedy | None:
    return job.treatment and job.treatment.remedy


def _what(job: JobRecord) -> str:
    treatment = job.treatment
    if treatment is None:
        return job.kind
    by_itself = f", as the site allows it for {treatment.condition.value}," if treatment.condition else ""
    return f"the remedy {treatment.remedy.value}{by_itself}"
