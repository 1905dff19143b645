"""Starts the remedies that the site allows where a condition keeps new workers off a GPU.

Rarely, never two at once in the whole fleet, and not for what passes by itself.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from llama_orch.contract.devices import Condition, ConditionType, Remedy
from llama_orch.contract.patterns import WHOLE_GPU_UUID
from llama_orch.contract.queen import Job, NodeHive
from llama_orch.web import correlation

from .jobs import Jobs
from .store import Cure, OpenJobExists, Store

log = logging.getLogger(__name__)


def due(
    conditions: Iterable[Condition], allowed: frozenset[Remedy], jobs: Iterable[Job], now: datetime, interval: timedelta
) -> Cure | None:
    """The remedy to start on a node now, None where there is nothing to do or it was tried of late.

    `jobs` are the node's. One that is open forbids every remedy; one that was begun for a condition within `interval`
    forbids another for the same type of condition.
    """
    jobs = list(jobs)
    if any(job.ended_at is None for job in jobs):
        return None
    tried = {job.condition for job in jobs if job.condition is not None and now - job.created_at < interval}
    for condition in conditions:
        remedy = _allowed_remedy(condition, allowed)
        if remedy is not None and condition.type not in tried:
            # A hive may answer anything, and Ansible evaluates what it is given.
            is_of_one = remedy is Remedy.RESET_GPU and re.fullmatch(WHOLE_GPU_UUID, condition.uuid or "")
            return Cure(remedy, condition.uuid if is_of_one else None, condition.type)
    return None


def _allowed_remedy(condition: Condition, allowed: frozenset[Remedy]) -> Remedy | None:
    return condition.remedy if condition.cordons and condition.remedy in allowed else None


class Standing:
    """Which conditions of one hive have been there at each look for `after`."""

    def __init__(self, after: timedelta) -> None:
        self._after = after
        self._since: dict[tuple[ConditionType, str | None], datetime] = {}

    def of(self, conditions: Iterable[Condition], now: datetime) -> list[Condition]:
        """Those of `conditions`, which are all that the hive tells now."""
        told = [((condition.type, condition.uuid), condition) for condition in conditions]
        self._since = {key: self._since.get(key, now) for key, _ in told}
        return [condition for key, condition in told if now - self._since[key] >= self._after]


class Remedies:
    """Looks at what each hive tells."""

    def __init__(
        self, store: Store, jobs: Jobs, allowed: Iterable[Remedy], *, after_s: float, interval_s: float
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._allowed = frozenset(allowed)
        self._after = timedelta(seconds=after_s)
        self._interval = timedelta(seconds=interval_s)
        self._standing: dict[str, Standing] = {}
        self._one_at_a_time = asyncio.Lock()

    async def seen(self, node_name: str, hive: NodeHive) -> None:
        """The node's hive answered: start what is due."""
        now = datetime.now(UTC)
        conditions = hive.devices.conditions if hive.devices else []
        standing = self._standing.setdefault(node_name, Standing(self._after)).of(conditions, now)
        if not any(_allowed_remedy(one, self._allowed) for one in standing):
            return
        async with self._one_at_a_time:
            await self._start_what_is_due(node_name, standing, now)

    async def _start_what_is_due(self, node_name: str, conditions: list[Condition], now: datetime) -> None:
        # From the store, not from memory: a queen that is restarted must not start anew what it just tried.
        if any(job.wire.kind == "remedy" for job in await self._store.open_jobs()):
            return
        jobs = await self._store.jobs_since(node_name, now - self._interval)
        cure = due(conditions, self._allowed, (job.wire for job in jobs), now, self._interval)
        if cure is None:
            return
        try:
            await self._jobs.submit("remedy", node_name, cure=cure)
        except OpenJobExists:
            return
        log.warning("the remedy %s begins on %s by itself, for %s", cure.remedy, node_name, cure.condition)
        await self._store.audit("remedy", node_name, correlation.current(), remedy=cure.remedy, by_itself=True)
