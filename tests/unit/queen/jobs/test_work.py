"""Jobs from their begin to their end: runs and hives are in memory, all else is the queen's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llama_orch.contract.common import Problem
from llama_orch.contract.devices import ConditionType, Remedy
from llama_orch.contract.queen import JobKind, JobStatus, NodeStatus
from llama_orch.queen.ansible import failures
from llama_orch.queen.jobs import running
from llama_orch.queen.jobs.work import JobWork
from llama_orch.queen.records import JobRecord, RemedyOrder
from llama_orch.queen.store.store import Store
from tests.support.job_parts import Site
from tests.support.memory_hives import a_host
from tests.support.memory_runs import Task

GOES_THROUGH = [Task("First"), Task("Second")]
BREAKS = [Task("First"), Task("Breaks", fails="[disk_gone] no disk\nDo: Put one in.")]
HANGS = [Task("First"), Task("Hangs", waits=True)]


class Jobs:
    """Runs one job as the engine does, and remembers each run by how it ended."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.runs: list[tuple[str, str]] = []
        # Of a connection that is not ssh, no login is tried.
        self.host = a_host("n", connection="local")
        self.site = Site(folder, store, self.host, ran=lambda *run: self.runs.append(run))
        self.store = store
        self.restart()

    def restart(self) -> None:
        """What a new process has in memory."""
        self.work = JobWork(self.site.parts)

    def playbook(self, name: str, tasks: list[Task]) -> None:
        self.site.runs.playbooks[name] = tasks

    async def create(
        self,
        kind: JobKind = "provision",
        *,
        order: RemedyOrder | None = None,
        force: bool = False,
        had_password: bool = False,
    ) -> None:
        await self.store.jobs.create("j", kind, "n", "c", order=order, force=force, had_password=had_password)

    async def job(self) -> JobRecord:
        job = await self.store.jobs.get("j")
        assert job is not None
        return job

    async def steps(self) -> Problem | None:
        await self.work.begin(await self.job())
        for step in (self.work.preflight, self.work.play, self.work.verify):
            if (problem := await step(await self.job())) is not None:
                return problem
        return None

    async def do(self) -> JobRecord:
        """The job from its begin to its end; a process reads its record once, before it begins."""
        before = await self.job()
        await self.work.finish(before, await self.steps())
        return await self.job()

    async def when_it_hangs(self) -> asyncio.Task[JobRecord]:
        """The job, once the task that hangs was begun."""
        doing = asyncio.create_task(self.do())
        await self.site.runs.waiting.wait()
        return doing

    async def told(self) -> list[str]:
        return [event.message or "" for event in await self.store.events.after("j", 0) if event.kind == "phase"]

    @property
    def node(self) -> NodeStatus:
        return self.site.states.get("n").status


@pytest.fixture
async def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Jobs]:
    monkeypatch.setattr(running, "RUN_AGAIN_S", (0.0, 0.0))
    store = Store(f"sqlite:///{tmp_path / 'q.sqlite'}")
    await store.open()
    yield Jobs(tmp_path, store)
    await store.close()


async def test_a_host_becomes_a_hive(jobs: Jobs):
    jobs.playbook("hive", GOES_THROUGH)
    jobs.site.hives.add(jobs.host)
    await jobs.create()
    job = await jobs.do()
    assert (job.status, job.error, job.percentage) == (JobStatus.SUCCEEDED, None, 100)
    assert jobs.node is NodeStatus.ACTIVE and jobs.site.states.get("n").hive is not None
    (spec,) = jobs.site.runs.begun
    assert (spec.playbook, spec.limit, spec.extra_vars) == ("hive", "n", {"of_the_site": "1"})
    assert await jobs.store.learnt.tasks_of("hive") == 2 and jobs.runs == [("hive", "succeeded")]


async def test_a_task_that_fails_fails_job_and_node(jobs: Jobs):
    jobs.playbook("hive", BREAKS)
    await jobs.create()
    job = await jobs.do()
    assert job.error is not None and (job.status, job.error.code) == (JobStatus.FAILED, "disk_gone")
    assert jobs.node is NodeStatus.FAILED and await jobs.store.learnt.tasks_of("hive") is None


async def test_a_hive_that_does_not_answer_fails_the_job(jobs: Jobs):
    jobs.playbook("hive", GOES_THROUGH)
    await jobs.create()
    job = await jobs.do()
    assert job.error is not None and (job.error.code, job.error.host) == ("hive_token_missing", "n")
    assert jobs.node is NodeStatus.FAILED


async def test_a_node_that_left_the_inventory_during_its_job_is_forgotten(jobs: Jobs):
    jobs.playbook("hive", GOES_THROUGH)
    await jobs.create()
    await jobs.steps()
    jobs.site.inventory.hosts.clear()
    await jobs.work.finish(await jobs.job(), None)
    assert jobs.site.states.known() == []


@pytest.mark.parametrize(("lost", "code"), [(1, None), (2, None), (3, "run_lost")])
async def test_a_run_that_is_lost_is_started_again_and_given_up_in_the_end(jobs: Jobs, lost: int, code: str | None):
    jobs.playbook("hive", GOES_THROUGH)
    jobs.site.hives.add(jobs.host)
    jobs.site.runs.lose_next = lost
    await jobs.create()
    job = await jobs.do()
    assert (job.error and job.error.code) == code
    names = {spec.run_id for spec in jobs.site.runs.begun}
    assert len(names) == len(jobs.site.runs.begun) == min(lost + 1, 3)


async def test_one_that_is_cancelled_ends_so(jobs: Jobs):
    jobs.playbook("hive", HANGS)
    await jobs.create()
    doing = await jobs.when_it_hangs()
    jobs.work.running("j").interrupt.set()
    job = await doing
    assert job.status is JobStatus.CANCELLED and jobs.runs == [("hive", "interrupted")]


async def test_a_queen_that_stops_leaves_the_job_for_the_next_start(jobs: Jobs):
    jobs.playbook("hive", HANGS)
    await jobs.create()
    doing = await jobs.when_it_hangs()
    jobs.work.stop()
    with pytest.raises(asyncio.CancelledError):
        await doing
    assert (await jobs.job()).status is JobStatus.RUNNING and jobs.node is NodeStatus.PROVISIONING
    jobs.restart()
    jobs.playbook("hive", GOES_THROUGH)
    jobs.site.hives.add(jobs.host)
    assert (await jobs.do()).status is JobStatus.SUCCEEDED
    assert "the queen was restarted: the job goes on" in await jobs.told()


async def test_a_password_goes_to_the_run_and_with_the_process(jobs: Jobs):
    jobs.playbook("hive", HANGS)
    await jobs.create(had_password=True)
    jobs.work.running("j").password = "pass"
    doing = await jobs.when_it_hangs()
    assert jobs.site.runs.begun[0].become_password == "pass"
    jobs.work.stop()
    with pytest.raises(asyncio.CancelledError):
        await doing
    jobs.restart()
    job = await jobs.do()
    assert job.error == failures.PASSWORD_LOST and len(jobs.site.runs.begun) == 1


async def test_nothing_is_kept_of_a_job_that_ended(jobs: Jobs):
    jobs.playbook("hive", GOES_THROUGH)
    await jobs.create()
    jobs.work.running("j").password = "pass"
    await jobs.do()
    assert jobs.work.running("j").password is None


@pytest.mark.parametrize(
    ("tasks", "force", "status"),
    [
        (GOES_THROUGH, False, JobStatus.SUCCEEDED),
        (BREAKS, False, JobStatus.FAILED),
        (BREAKS, True, JobStatus.SUCCEEDED),
    ],
    ids=["taken off", "not taken off", "forgotten by force"],
)
async def test_a_node_is_removed(jobs: Jobs, tasks: list[Task], force: bool, status: JobStatus):
    jobs.playbook("remove", tasks)
    await jobs.create("remove", force=force)
    assert (await jobs.do()).status is status
    gone = status is JobStatus.SUCCEEDED
    assert ("n" not in jobs.site.inventory.hosts) is gone
    assert (jobs.site.states.known() == []) is gone
    if not gone:
        assert jobs.node is NodeStatus.FAILED


async def test_a_removal_by_force_that_is_cancelled_forgets_nothing(jobs: Jobs):
    jobs.playbook("remove", HANGS)
    await jobs.create("remove", force=True)
    doing = await jobs.when_it_hangs()
    jobs.work.running("j").interrupt.set()
    assert (await doing).status is JobStatus.CANCELLED
    assert "n" in jobs.site.inventory.hosts and jobs.node is NodeStatus.FAILED


async def test_a_remedy_leaves_the_node_what_it_is(jobs: Jobs):
    jobs.playbook("reset_gpu", BREAKS)
    await jobs.create("remedy", order=RemedyOrder(Remedy.RESET_GPU, "GPU-1", ConditionType.XID))
    job = await jobs.do()
    assert job.error is not None and job.error.code == "disk_gone" and jobs.node is NodeStatus.REGISTERED
    assert jobs.site.runs.begun[0].extra_vars == {"of_the_site": "1", "gpu_remedy_gpu": "GPU-1"}
    assert (await jobs.told())[0] == "the remedy reset_gpu, as the site allows it for xid, begins"


async def test_a_reboot_is_told_since_when_one_counts(jobs: Jobs):
    jobs.playbook("reboot", GOES_THROUGH)
    await jobs.create("remedy", order=RemedyOrder(Remedy.REBOOT))
    job = await jobs.do()
    assert job.started_at is not None
    assert jobs.site.runs.begun[0].extra_vars["gpu_remedy_began"] == int(job.started_at.timestamp())


@pytest.mark.parametrize(
    ("resume", "told"), [(GOES_THROUGH, False), (BREAKS, True)], ids=["started again", "still stopped"]
)
async def test_what_a_cancelled_remedy_stopped_is_started_again(jobs: Jobs, resume: list[Task], told: bool):
    jobs.playbook("reset_gpu", HANGS)
    jobs.playbook("resume", resume)
    await jobs.create("remedy", order=RemedyOrder(Remedy.RESET_GPU))
    doing = await jobs.when_it_hangs()
    jobs.work.running("j").interrupt.set()
    job = await doing
    assert [spec.playbook for spec in jobs.site.runs.begun] == ["reset_gpu", "resume"]
    assert job.status is JobStatus.CANCELLED and job.error is not None
    assert ("may be stopped, and could not be started again: no disk" in job.error.message) is told


@pytest.mark.parametrize("played", [True, False])
async def test_of_a_remedy_that_was_cut_short_it_is_said_that_the_host_may_be_stopped(jobs: Jobs, played: bool):
    jobs.playbook("reset_gpu", GOES_THROUGH)
    jobs.site.runs.lose_next = 3
    # Without its password it ends before its playbook.
    await jobs.create("remedy", order=RemedyOrder(Remedy.RESET_GPU), had_password=not played)
    job = await jobs.do()
    assert job.error is not None and ("may be stopped" in job.error.message) is played


async def test_a_report_stops_nothing_so_nothing_is_started_again(jobs: Jobs):
    jobs.playbook("collect_gpu_report", HANGS)
    await jobs.create("remedy", order=RemedyOrder(Remedy.COLLECT_GPU_REPORT))
    doing = await jobs.when_it_hangs()
    jobs.work.running("j").interrupt.set()
    assert (await doing).error == failures.CANCELLED and len(jobs.site.runs.begun) == 1


async def test_a_job_that_is_given_up_fails_its_node(jobs: Jobs):
    await jobs.create()
    await jobs.work.begin(await jobs.job())
    await jobs.work.give_up(await jobs.job())
    assert (await jobs.job()).error == failures.INTERNAL and jobs.node is NodeStatus.FAILED
