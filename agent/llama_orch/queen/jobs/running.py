"""One job that runs, or is about to: its password, its story, and whether it is to be interrupted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from llama_orch.contract.common import Problem

from ..ansible import failures
from ..ansible.runs import RunResult, RunSpec
from .events import Story
from .parts import Parts, Variables

# A run whose process was lost, as for lack of memory, is started again after these pauses.
RUN_AGAIN_S = (2.0, 10.0)


class RunningJob:
    """All that is kept of a job in memory, until it ends.

    `interrupt` is set when it is cancelled or the queen stops, `stop` when she stops. `played` says that this process
    began its playbook.
    """

    def __init__(self, job_id: str, parts: Parts, stop: asyncio.Event) -> None:
        self.job_id = job_id
        self.password: str | None = None
        self.interrupt = asyncio.Event()
        self.stop = stop
        self.played = False
        self._parts = parts
        self._story: Story | None = None
        if stop.is_set():
            self.interrupt.set()

    @property
    def story(self) -> Story:
        """Where it is told. Raises RuntimeError before `tell`."""
        if self._story is None:
            raise RuntimeError(f"the story of {self.job_id} has not begun")
        return self._story

    async def tell(self) -> Story:
        """Begin its story, or go on with it."""
        if self._story is None:
            self._story = await self._parts.events.story(self.job_id)
        return self._story

    async def clear(self) -> None:
        """End what an earlier attempt left. Raises fence.FenceFailed."""
        await self._parts.runs.clear(self.job_id)

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until it is interrupted. Raises CancelledError where the queen stops meanwhile."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.interrupt.wait(), seconds)
        if self.stop.is_set():
            raise asyncio.CancelledError("the queen stops")

    def interrupted(self) -> Problem:
        """What an interrupted step answers. Raises CancelledError where the queen stops."""
        if self.stop.is_set():
            # The durable engine must not see this step end: the next start repeats it.
            raise asyncio.CancelledError("the queen stops")
        return failures.CANCELLED

    async def unless_interrupted(self, work: Coroutine[Any, Any, Problem | None]) -> Problem | None:
        """What `work` answers, which is cancelled where the job is interrupted meanwhile."""
        task = asyncio.create_task(work)
        interrupted = asyncio.create_task(self.interrupt.wait())
        try:
            await asyncio.wait({task, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            interrupted.cancel()
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
        if task.cancelled():
            await self.clear()
            return self.interrupted()
        return task.result()

    async def run(
        self, playbook: str, node_name: str, variables: Variables, interrupt: asyncio.Event | None = None
    ) -> RunResult:
        """Run a playbook on one node, until `interrupt`, which is the job's own unless another is given."""
        interrupt = interrupt or self.interrupt
        for pause in RUN_AGAIN_S:
            result = await self._run_once(playbook, node_name, variables, interrupt)
            if not result.lost:
                return result
            self.story.phase(f"the run's process ended without a result: it is started again in {pause:g} s")
            self.story.progress.again()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(interrupt.wait(), pause)
        return await self._run_once(playbook, node_name, variables, interrupt)

    async def _run_once(
        self, playbook: str, node_name: str, variables: Variables, interrupt: asyncio.Event
    ) -> RunResult:
        runs, story = self._parts.runs, self.story
        everywhere = self._parts.extra_vars
        spec = RunSpec(runs.next_run_id(self.job_id), playbook, node_name, everywhere | variables, self.password)
        result = await runs.run(spec, story.line, interrupt)
        # Where the store fails now, it is tried again until the job's end: nothing is run again for it.
        with contextlib.suppress(Exception):
            await story.flush()
        ended = "succeeded" if result.succeeded(node_name) else "failed"
        self._parts.ran(playbook, "interrupted" if result.interrupted else ended)
        return result
