"""What any `Runs` does: a suite that the real ones and those in memory pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from llama_orch.queen.ansible import fence
from llama_orch.queen.ansible.lines import PlayLine, TaskLine
from llama_orch.queen.ansible.runs import RunResult, Runs, RunSpec

from .memory_runs import Task

HOST = "here"


class Place(Protocol):
    """Runs, and where their playbooks come from. The inventory has the one host `HOST`."""

    runs: Runs

    def write(self, playbook: str, tasks: Sequence[Task]) -> None:
        """There is a playbook of this name from now on."""
        ...


class Told:
    """The lines of a run; `begun` is set at its first task."""

    def __init__(self) -> None:
        self.lines: list[PlayLine | TaskLine] = []
        self.begun = asyncio.Event()

    def take(self, line: PlayLine | TaskLine) -> None:
        self.lines.append(line)
        if isinstance(line, TaskLine):
            self.begun.set()

    @property
    def tasks(self) -> list[tuple[str, str]]:
        """Each task's name with its outcomes; whether one changed something is not told apart."""
        return [(line.task, line.outcome) for line in self.lines if isinstance(line, TaskLine)]


class RunsContract:
    """Takes a `Place` from the fixture `place`."""

    async def run(
        self, place: Place, playbook: str = "hive", *, limit: str = HOST, told: Told | None = None
    ) -> RunResult:
        spec = RunSpec(place.runs.next_run_id("job-1"), playbook, limit, {"gpu": "GPU-1", "count": 2})
        return await place.runs.run(spec, (told or Told()).take, asyncio.Event())

    async def test_a_playbook_that_goes_through(self, place: Place):
        place.write("hive", [Task("First"), Task("Second")])
        told = Told()
        result = await self.run(place, told=told)
        assert result.succeeded(HOST) and result.problem(HOST) is None and not result.lost
        assert result.tasks == 2 and result.failures == []
        assert told.tasks == [(task, outcome) for task in ("First", "Second") for outcome in ("started", "ok")]
        assert isinstance(told.lines[0], PlayLine) and told.lines[0].play == "hive"

    async def test_a_task_that_fails_is_named_and_ends_the_run(self, place: Place):
        place.write(
            "hive", [Task("First"), Task("Breaks", fails="[disk_gone] no disk\nDo: Put one in."), Task("Third")]
        )
        told = Told()
        result = await self.run(place, told=told)
        problem = result.problem(HOST)
        assert problem is not None and not result.succeeded(HOST) and not result.lost
        assert (problem.code, problem.task, problem.host) == ("disk_gone", "Breaks", HOST)
        assert (problem.message, problem.what_to_do) == ("no disk", "Put one in.")
        assert result.tasks == 2 and told.tasks[-1] == ("Breaks", "failed")

    async def test_a_playbook_is_told_the_variables(self, place: Place):
        place.write("hive", [Task("Say", fails="[told] {{ gpu }} and {{ count + 1 }}")])
        problem = (await self.run(place)).problem(HOST)
        assert problem is not None and problem.message == "GPU-1 and 3"

    async def test_a_playbook_that_is_not_there(self, place: Place):
        result = await self.run(place, "unheard-of")
        problem = result.problem(HOST)
        assert problem is not None and problem.code == "playbook_missing" and not result.lost

    async def test_a_host_that_is_not_there(self, place: Place):
        place.write("hive", [Task("First")])
        result = await self.run(place, limit="nobody")
        problem = result.problem("nobody")
        assert problem is not None and problem.code == "not_in_inventory" and result.tasks == 0

    async def test_one_that_is_interrupted(self, place: Place):
        place.write("hive", [Task("Hangs", waits=True)])
        told, interrupt = Told(), asyncio.Event()
        spec = RunSpec(place.runs.next_run_id("job-1"), "hive", HOST, {})
        running = asyncio.create_task(place.runs.run(spec, told.take, interrupt))
        await told.begun.wait()
        interrupt.set()
        result = await running
        assert result.interrupted and not result.succeeded(HOST) and not result.lost

    async def test_one_that_is_cleared_is_lost_and_those_of_other_jobs_go_on(self, place: Place):
        place.write("hive", [Task("Hangs", waits=True)])
        told = {job: Told() for job in ("job-1", "job-2")}
        running = {
            job: asyncio.create_task(
                place.runs.run(RunSpec(place.runs.next_run_id(job), "hive", HOST, {}), lines.take, asyncio.Event())
            )
            for job, lines in told.items()
        }
        await asyncio.gather(*(lines.begun.wait() for lines in told.values()))
        await place.runs.clear("job-1")
        lost = await running["job-1"]
        assert lost.lost and not lost.succeeded(HOST) and not running["job-2"].done()
        await place.runs.clear()
        assert (await running["job-2"]).lost

    async def test_each_run_has_a_name_of_its_own_that_marks_its_processes(self, place: Place):
        names = [place.runs.next_run_id("job-1") for _ in range(100)]
        assert len(set(names)) == 100 and {name.rpartition(".")[0] for name in names} == {"job-1"}
        assert place.runs.prepare(names[0])[fence.MARKER] == names[0]
        await place.runs.clear()
