"""Starts the remedies that the site allows where a condition keeps new workers off a GPU.

Rarely, never two at once in the whole fleet, and not for what passes by itself; times are of a clock that nobody sets.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta

from llama_orch.contract.devices import Condition, ConditionType, Remedy
from llama_orch.contract.patterns import WHOLE_GPU_UUID
from llama_orch.contract.queen import NodeHive
from llama_orch.web import correlation

from ..records import Treatment
from ..store.jobs import OpenJobExists
from ..store.store import Store
from .engine import Jobs

log = logging.getLogger(__name__)


def due(
    conditions: Iterable[Condition], allowed: frozenset[Remedy], tried: Collection[ConditionType]
) -> Treatment | None:
    """The remedy to start on a node now, None where there is nothing to do or all of it was `tried` of late."""
    for condition in conditions:
        remedy = _allowed_remedy(condition, allowed)
        if remedy is not None and condition.type not in tried:
            # A hive may answer anything, and Ansible evaluates what it is given.
            is_of_one = remedy is Remedy.RESET_GPU and re.fullmatch(WHOLE_GPU_UUID, condition.uuid or "")
            return Treatment(remedy, condition.uuid if is_of_one else None, condition.type)
    return None


def _allowed_remedy(condition: Condition, allowed: frozenset[Remedy]) -> Remedy | None:
    return condition.remedy if condition.cordons and condition.remedy in allowed else None


class Standing:
    """Which conditions of one hive have been there at each look for `after_s` seconds."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: dict[tuple[ConditionType, str | None], float] = {}

    def of(self, conditions: Iterable[Condition], now: float) -> list[Condition]:
        """Those of `conditions`, which are all that the hive tells now."""
        told = [((condition.type, condition.uuid), condition) for condition in conditions]
        self._since = {key: self._since.get(key, now) for key, _ in told}
        return [condition for key, condition in told if now - self._since[key] >= self._after_s]


class Tried:
    """For which types of condition a remedy began on one node within the last `interval_s` seconds."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._at: dict[ConditionType, float] = {}

    def note(self, condition: ConditionType, at: float) -> None:
        """A remedy for it began."""
        self._at[condition] = max(at, self._at.get(condition, at))

    def of_late(self, now: float) -> frozenset[ConditionType]:
        """Those that are not to be treated now."""
        return frozenset(condition for condition, at in self._at.items() if now - at < self._interval_s)


class Remedies:
    """Looks at what each hive tells."""

    def __init__(
        self,
        store: Store,
        jobs: Jobs,
        allowed: Iterable[Remedy],
        *,
        after_s: float,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._allowed = frozenset(allowed)
        self._after_s = after_s
        self._interval_s = interval_s
        self._clock = clock
        self._standing: dict[str, Standing] = {}
        self._tried: dict[str, Tried] = {}
        self._one_at_a_time = asyncio.Lock()

    def forget(self, node_name: str) -> None:
        """The node is gone: what was seen of it counts for none that may come under its name."""
        self._standing.pop(node_name, None)
        self._tried.pop(node_name, None)

    async def seen(self, node_name: str, hive: NodeHive) -> None:
        """The node's hive answered: start what is due."""
        now = self._clock()
        conditions = hive.devices.conditions if hive.devices else []
        standing = self._standing.setdefault(node_name, Standing(self._after_s)).of(conditions, now)
        if not any(_allowed_remedy(one, self._allowed) for one in standing):
            return
        async with self._one_at_a_time:
            await self._start_what_is_due(node_name, standing, now)

    async def _start_what_is_due(self, node_name: str, conditions: list[Condition], now: float) -> None:
        open_jobs = await self._store.jobs.open()
        if any(job.kind == "remedy" or job.node_name == node_name for job in open_jobs):
            return
        tried = await self._tried_on(node_name, now)
        treatment = due(conditions, self._allowed, tried.of_late(now))
        if treatment is None or treatment.condition is None:
            return
        try:
            await self._jobs.submit("remedy", node_name, treatment=treatment)
        except OpenJobExists:
            return
        except Exception:
            # It may be in the store all the same.
            self._tried.pop(node_name, None)
            raise
        tried.note(treatment.condition, now)
        log.warning("the remedy %s begins on %s by itself, for %s", treatment.remedy, node_name, treatment.condition)
        await self._store.audit.note(
            "remedy", node_name, correlation.current(), remedy=treatment.remedy, by_itself=True
        )

    async def _tried_on(self, node_name: str, now: float) -> Tried:
        """From the store at first: a queen that is restarted must not start anew what it just tried.

        There it stands by the wall's clock, which may have been set meanwhile: none of it counts as later than now.
        """
        if node_name not in self._tried:
            tried, wall = Tried(self._interval_s), datetime.now(UTC)
            for job in await self._store.jobs.since(node_name, wall - timedelta(seconds=self._interval_s)):
                if job.treatment is not None and job.treatment.condition is not None:
                    ago = (wall - job.created_at).total_seconds()
                    tried.note(job.treatment.condition, now - max(0.0, ago))
            self._tried[node_name] = tried
        return self._tried[node_name]
