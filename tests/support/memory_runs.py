"""Runs in memory: playbooks are lists of tasks that the test wrote. They pass the contract of the real ones."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from llama_orch.queen.ansible import fence
from llama_orch.queen.ansible.failures import TaskFailure
from llama_orch.queen.ansible.lines import PlayLine, Stats, TaskLine
from llama_orch.queen.ansible.runs import OnLine, RunResult, RunSpec


@dataclass(frozen=True)
class Task:
    """A task of a made-up playbook: it succeeds, `fails` with a message (a template), or `waits` until it is ended."""

    name: str
    fails: str | None = None
    waits: bool = False


class MemoryRuns:
    """Has the playbooks that the test put into `playbooks`, on the hosts in `hosts`; `lose_next` runs are lost."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = set(hosts)
        self.playbooks: dict[str, Sequence[Task]] = {}
        self.lose_next = 0
        # Of every run that was begun, in their order.
        self.begun: list[RunSpec] = []
        # Set while a task waits.
        self.waiting = asyncio.Event()
        self._ended: dict[str, asyncio.Event] = {}
        self._numbers = itertools.count(1)

    async def clear(self, job_id: str | None = None) -> None:
        """End what runs, as if its process was killed."""
        for run_id, ended in self._ended.items():
            if job_id is None or run_id.rpartition(".")[0] == job_id:
                ended.set()
        # Who waited for a run goes on before this answers.
        await asyncio.sleep(0)

    def prepare(self, run_id: str) -> dict[str, str]:
        """Nothing but the mark."""
        return {fence.MARKER: run_id}

    def next_run_id(self, job_id: str) -> str:
        """Numbered."""
        return f"{job_id}.{next(self._numbers)}"

    async def run(self, spec: RunSpec, on_line: OnLine, interrupt: asyncio.Event) -> RunResult:
        """Go through the tasks, at once but for those that wait."""
        self.begun.append(spec)
        ended = self._ended[spec.run_id] = asyncio.Event()
        try:
            return await self._play(spec, on_line, interrupt, ended)
        finally:
            del self._ended[spec.run_id]

    async def _play(self, spec: RunSpec, on_line: OnLine, interrupt: asyncio.Event, ended: asyncio.Event) -> RunResult:
        result = RunResult()
        if self.lose_next:
            self.lose_next -= 1
            return result
        if (refusal := self._refusal(spec)) is not None:
            result.status, result.output = "failed", refusal
            return result
        on_line(PlayLine(kind="play", play=spec.playbook))
        for task in self.playbooks[spec.playbook]:
            result.tasks += 1
            on_line(TaskLine(kind="task", task=task.name, outcome="started"))
            if task.waits:
                self.waiting.set()
                await _first_of(interrupt, ended)
                self.waiting.clear()
                result.interrupted = interrupt.is_set()
                return result
            message = None if task.fails is None else jinja2.Template(task.fails).render(spec.extra_vars)
            outcome = "ok" if message is None else "failed"
            on_line(TaskLine(kind="task", task=task.name, host=spec.limit, outcome=outcome, message=message))
            if message is not None:
                result.failures.append(TaskFailure(spec.limit, task.name, message))
                break
        failed = {spec.limit: 1} if result.failures else {}
        result.status = "failed" if failed else "successful"
        result.stats = Stats(failures=failed, dark={}, processed={spec.limit: 1})
        return result

    def _refusal(self, spec: RunSpec) -> str | None:
        if spec.playbook not in self.playbooks:
            return f"ERROR! the playbook: playbooks/{spec.playbook}.yml could not be found"
        return None if spec.limit in self.hosts else f"Could not match supplied host pattern, ignoring: {spec.limit}"


async def _first_of(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
