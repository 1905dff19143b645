from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from llama_orch.contract.queen import JobEvent, JobStatus
from llama_orch.queen.ansible.lines import TaskLine
from llama_orch.queen.jobs import events as job_events
from llama_orch.queen.jobs.events import JobEvents, Story
from llama_orch.queen.store.events import EventTable
from llama_orch.queen.store.store import Store


class Events(EventTable):
    """On a disk that may be full, for one write or until it has room; and on one that fails after it wrote."""

    full = 0
    lies = False

    async def add(self, job_id: str, events: Sequence[JobEvent]) -> None:
        if self.full > 0:
            self.full -= 1
            raise OSError(28, "No space left on device")
        await super().add(job_id, events)
        if self.lies:
            self.lies = False
            raise OSError(5, "Input/output error")


class Disk(Store):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.events: Events = Events(self.database)


@pytest.fixture
async def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Disk]:
    monkeypatch.setattr(job_events, "_BATCH_S", 0.001)
    monkeypatch.setattr(job_events, "_LONGEST_PAUSE_S", 0.001)
    disk = Disk(f"sqlite:///{tmp_path / 'q.sqlite'}")
    await disk.open()
    await disk.jobs.create("j", "provision", "n", "c")
    yield disk
    await disk.close()


@pytest.fixture
def events(disk: Disk) -> JobEvents:
    return JobEvents(disk)


@pytest.fixture
async def story(events: JobEvents) -> Story:
    return await events.story("j")


async def told(disk: Disk) -> list[str | None]:
    found = await disk.events.after("j", 0, 100_000)
    assert [event.seq for event in found] == list(range(1, len(found) + 1)), "none is missing and none is twice"
    return [event.message or event.task or event.kind for event in found]


async def until_told(disk: Disk, count: int) -> list[str | None]:
    async with asyncio.timeout(30):
        while len(found := await told(disk)) < count:  # noqa: ASYNC110  a disk tells no event
            await asyncio.sleep(0)
    return found


async def test_what_the_disk_does_not_take_is_written_when_it_has_room(disk: Disk, story: Story):
    disk.events.full = 3
    story.phase("one")
    story.phase("two")
    # No more is said, as in a long task: it does not wait for the next line.
    assert await until_told(disk, 2) == ["one", "two"]
    assert disk.events.full == 0


async def test_what_comes_while_something_is_written_does_not_wait_for_more(disk: Disk, story: Story):
    writing = asyncio.Event()
    add = disk.events.add

    async def slowly(job_id: str, events: Sequence[JobEvent]) -> None:
        writing.set()
        await asyncio.sleep(0.01)
        await add(job_id, events)

    disk.events.add = slowly  # pyright: ignore[reportAttributeAccessIssue]
    story.phase("one")
    await writing.wait()
    story.phase("two")
    assert await until_told(disk, 2) == ["one", "two"]


async def test_what_was_written_though_the_write_failed_is_there_once(disk: Disk, story: Story):
    disk.events.lies = True
    story.phase("one")
    with pytest.raises(OSError, match="Input/output"):
        await story.flush()
    story.phase("two")
    await story.flush()
    assert await told(disk) == ["one", "two"]


async def test_a_write_that_is_cut_short_loses_nothing(disk: Disk, story: Story):
    story.phase("one")
    flushing = asyncio.create_task(story.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    await story.flush()
    assert await told(disk) == ["one"]


async def test_the_end_is_told_once_however_often_it_is_tried(disk: Disk, events: JobEvents, story: Story):
    disk.events.full = 2
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            await story.end(JobStatus.FAILED, "why")
    await disk.jobs.end("j", JobStatus.FAILED, None)
    await story.end(JobStatus.FAILED, "why")
    events.forget("j")
    assert await told(disk) == ["why"]


async def test_a_queen_that_stops_writes_what_is_pending(disk: Disk, events: JobEvents, story: Story):
    story.phase("one")
    await events.finish()
    assert await told(disk) == ["one"]
    disk.events.full = 1
    story.phase("lost")
    await events.finish()
    assert await told(disk) == ["one"], "a disk that is full holds up no stop"


async def test_a_story_has_a_bound_for_what_fails_too(disk: Disk, events: JobEvents, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(job_events, "MAX_EVENTS", 10)
    monkeypatch.setattr(job_events, "MAX_FAILURES_BEYOND", 5)
    for _ in range(2):  # and again after a restart
        story = await events.story("j")
        for number in range(30):
            story.line(TaskLine(kind="task", task=f"ok {number}", outcome="ok"))
        for number in range(30):
            story.line(TaskLine(kind="task", task=f"bad {number}", outcome="failed"))
        await story.flush()
    await (await events.story("j")).end(JobStatus.FAILED, "why")
    kept = await told(disk)
    assert kept[:10] == [f"ok {number}" for number in range(10)]
    assert kept[10] == "this job has more than 10 events: from here on only what fails is told"
    assert kept[11:15] == [f"bad {number}" for number in range(4)]
    assert kept[15] == "this job has more than 15 events: from here on nothing but the end is told"
    assert kept[-1] == "why" and len(kept) == 19


async def test_events_come_in_lists_that_are_no_longer_than_is_good(disk: Disk, events: JobEvents, story: Story):
    for number in range(250):
        story.phase(str(number))
    await disk.jobs.end("j", JobStatus.SUCCEEDED, None)
    await story.end(JobStatus.SUCCEEDED, None)
    assert [len(some) async for some in events.stream("j")] == [100, 100, 51]


async def test_nothing_is_kept_for_who_reads_and_writes_no_more(disk: Disk, events: JobEvents):
    async def read(job_id: str) -> None:
        async for _ in events.stream(job_id):
            pass

    for number in range(20):
        await disk.jobs.create(f"j{number}", "provision", f"n{number}", "c")
    reading = [asyncio.create_task(read(f"j{number}")) for number in range(20)]
    story = await events.story("j1")
    await story.flush()
    await asyncio.sleep(0.05)
    while reading:
        reading[-1].cancel()
        await asyncio.wait({reading.pop()})
    events.forget("j1")
    del story
    gc.collect()
    assert len(vars(events)["_told"]) == len(vars(events)["_stories"]) == 0
