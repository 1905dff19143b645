"""What the queen's store does, whatever it runs on: a suite that each database passes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from llama_orch.contract.common import Problem, WorkerCounts
from llama_orch.contract.queen import JobEvent, JobStatus, NodeHive, NodeStatus
from llama_orch.queen.records import NodeRecord
from llama_orch.queen.store.jobs import OpenJobExists
from llama_orch.queen.store.store import Store


async def a_job(store: Store, job_id: str, node: str = "n") -> None:
    await store.jobs.create(job_id, "provision", node, "c", force=False, had_password=False)


class StoreContract:
    """Takes an open store from the fixture `store`."""

    async def test_a_node_has_one_open_job(self, store: Store):
        await a_job(store, "j1")
        with pytest.raises(OpenJobExists) as raised:
            await a_job(store, "j2")
        assert raised.value.job.job_id == "j1"
        await a_job(store, "j4", node="other")
        await store.jobs.end("j1", JobStatus.FAILED, Problem(code="c", message="m"))
        await a_job(store, "j5")
        assert [job.job_id for job in (await store.jobs.page("n"))[0]] == ["j5", "j1"]
        assert [job.job_id for job in await store.jobs.open()] == ["j4", "j5"]

    async def test_jobs_since_then_and_those_that_are_open(self, store: Store):
        await a_job(store, "j1")
        now = datetime.now(UTC)
        assert [job.job_id for job in await store.jobs.since("n", now + timedelta(hours=1))] == ["j1"]
        await store.jobs.end("j1", JobStatus.SUCCEEDED, None)
        assert await store.jobs.since("n", now + timedelta(hours=1)) == []
        assert [job.job_id for job in await store.jobs.since("n", now - timedelta(hours=1))] == ["j1"]
        assert await store.jobs.since("other", now - timedelta(hours=1)) == []

    async def test_jobs_in_pages(self, store: Store):
        for number in range(5):
            await a_job(store, f"j{number}", node=f"n{number % 2}")
            await store.jobs.end(f"j{number}", JobStatus.SUCCEEDED, None)
        seen: list[list[str]] = []
        jobs, following = await store.jobs.page(limit=2)
        seen.append([job.job_id for job in jobs])
        await a_job(store, "new")
        while following is not None:
            jobs, following = await store.jobs.page(limit=2, before=following)
            seen.append([job.job_id for job in jobs])
        assert seen == [["j4", "j3"], ["j2", "j1"], ["j0"]]
        jobs, following = await store.jobs.page("n0", limit=2)
        assert [job.job_id for job in jobs] == ["j4", "j2"] and following is not None
        jobs, following = await store.jobs.page("n0", limit=2, before=following)
        assert ([job.job_id for job in jobs], following) == (["j0"], None)

    async def test_an_ended_job_stays_as_it_ended(self, store: Store):
        await a_job(store, "j")
        await store.jobs.start("j")
        await store.jobs.end("j", JobStatus.SUCCEEDED, None)
        await store.jobs.end("j", JobStatus.FAILED, Problem(code="c", message="m"))
        assert not await store.jobs.cancel("j")
        job = await store.jobs.get("j")
        assert job is not None and (job.status, job.percentage) == (JobStatus.SUCCEEDED, 100)
        assert job.created_at <= (job.started_at or datetime.max) <= (job.ended_at or datetime.max)

    async def test_a_job_that_is_being_cancelled_does_not_run_again(self, store: Store):
        await a_job(store, "j")
        assert await store.jobs.cancel("j")
        await store.jobs.start("j")
        job = await store.jobs.get("j")
        assert job is not None and job.status is JobStatus.CANCELLING and job.is_open

    async def test_events_are_read_from_any_place(self, store: Store):
        await a_job(store, "j")
        events = [
            JobEvent(seq=seq, at=datetime.now(UTC), kind="phase", percentage=float(seq), message="é" * seq)
            for seq in range(1, 8)
        ]
        await store.events.add("j", events[:4])
        await store.events.add("j", events[4:])
        assert await store.events.after("j", 0) == events
        assert await store.events.after("j", 5) == events[5:]
        assert await store.events.last("j") == events[-1]
        job = await store.jobs.get("j")
        assert job is not None and job.percentage == 7

    async def test_counts_hold_every_status(self, store: Store):
        await a_job(store, "j")
        counts = await store.jobs.counts()
        assert set(counts) == set(JobStatus) and counts[JobStatus.QUEUED] == 1 and sum(counts.values()) == 1

    async def test_old_jobs_go_with_their_events_and_open_ones_stay(self, store: Store):
        await a_job(store, "open", node="busy")
        for number in range(5):
            await a_job(store, f"j{number}")
            event = JobEvent(seq=1, at=datetime.now(UTC), kind="end", percentage=0.0)
            await store.events.add(f"j{number}", [event])
            await store.jobs.end(f"j{number}", JobStatus.FAILED, None)
        assert await store.trim(kept_jobs=2) == ["j0", "j1", "j2"]
        assert [job.job_id for job in (await store.jobs.page())[0]] == ["j4", "j3", "open"]
        assert await store.events.after("j0", 0) == []

    async def test_learnt_task_counts(self, store: Store):
        assert await store.learnt.tasks_of("hive") is None
        await store.learnt.learn("hive", 40)
        await store.learnt.learn("hive", 41)
        assert await store.learnt.tasks_of("hive") == 41

    async def test_nodes_are_what_was_last_saved(self, store: Store):
        at = datetime(2026, 11, 20, 10, 0, 0, 5, UTC)
        hive = NodeHive(hive_id="é", version="0", url="http://n", workers=WorkerCounts(total=2, idle=1, busy=1))
        first = NodeRecord("n", NodeStatus.ACTIVE, "j", at, None, hive, at)
        await store.nodes.save([first, NodeRecord("other")])
        assert await store.nodes.all() == {"n": first, "other": NodeRecord("other")}
        problem = Problem(code="c", message="m \U0001f999", what_to_do="w")
        second = NodeRecord("n", NodeStatus.UNREACHABLE, "j", at, problem, None, None)
        await store.nodes.save([second])
        await store.nodes.forget("other")
        assert await store.nodes.all() == {"n": second}

    async def test_events_that_are_there_already_stay(self, store: Store):
        await a_job(store, "j")
        events = [JobEvent(seq=seq, at=datetime.now(UTC), kind="phase", percentage=1.0) for seq in (1, 2, 3)]
        await store.events.add("j", events[:2])
        await store.events.add("j", [events[0].model_copy(update={"message": "again"}), *events[1:]])
        assert await store.events.after("j", 0) == events

    async def test_times_sort_as_they_are(self, store: Store):
        await a_job(store, "j")
        job = await store.jobs.get("j")
        assert job is not None
        await store.jobs.end("j", JobStatus.FAILED, None)
        # One without microseconds is written shorter, and a language's order would look past the signs in it.
        whole = job.created_at.replace(microsecond=0)
        assert await store.jobs.since("n", whole - timedelta(seconds=1)) != []
        assert await store.jobs.since("n", whole + timedelta(seconds=1)) == []
