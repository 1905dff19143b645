"""Begins remedies without being asked: those that the site allows, for conditions that keep new workers off a GPU.

A condition must have persisted for some time, as many pass by themselves. For each type of condition a node gets one
remedy within an interval, and one remedy at a time runs in the whole fleet. Times are of the monotonic clock: setting
the clock of the machine begins no remedy and delays none.
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

from ..records import RemedyOrder
from ..store.jobs import OpenJobExists
from ..store.store import Store
from .engine import Jobs

log = logging.getLogger(__name__)


def next_remedy(
    conditions: Iterable[Condition], allowed: frozenset[Remedy], recent: Collection[ConditionType]
) -> RemedyOrder | None:
    """The remedy to begin on a node now; None where no condition has one that is allowed, or each had one recently."""
    for condition in conditions:
        remedy = _allowed_remedy(condition, allowed)
        if remedy is not None and condition.type not in recent:
            # A hive may answer anything, and Ansible evaluates what it is given.
            is_of_one = remedy is Remedy.RESET_GPU and re.fullmatch(WHOLE_GPU_UUID, condition.uuid or "")
            return RemedyOrder(remedy, condition.uuid if is_of_one else None, condition.type)
    return None


def _allowed_remedy(condition: Condition, allowed: frozenset[Remedy]) -> Remedy | None:
    return condition.remedy if condition.cordons and condition.remedy in allowed else None


class PersistentConditions:
    """Which conditions of one hive have been there, each time it was asked, for `after_s` seconds."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: dict[tuple[ConditionType, str | None], float] = {}

    def among(self, conditions: Iterable[Condition], now: float) -> list[Condition]:
        """Those of `conditions`, which are all that the hive tells `now` (seconds)."""
        told = [((condition.type, condition.uuid), condition) for condition in conditions]
        self._since = {key: self._since.get(key, now) for key, _ in told}
        return [condition for key, condition in told if now - self._since[key] >= self._after_s]


class RecentRemedies:
    """For which types of condition a remedy began on one node within the last `interval_s` seconds."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._began_at: dict[ConditionType, float] = {}

    def note(self, condition: ConditionType, at: float) -> None:
        """A remedy for it began at this time (seconds)."""
        self._began_at[condition] = max(at, self._began_at.get(condition, at))

    def conditions(self, now: float) -> frozenset[ConditionType]:
        """Those for which none is to begin now."""
        return frozenset(condition for condition, at in self._began_at.items() if now - at < self._interval_s)


class AutomaticRemedies:
    """Begins remedies for what hives tell of their GPUs, where the site allows it."""

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
        self._persistent: dict[str, PersistentConditions] = {}
        self._recent: dict[str, RecentRemedies] = {}
        self._one_at_a_time = asyncio.Lock()

    def forget(self, node_name: str) -> None:
        """The node is gone: what was seen of it counts for none that may come under its name."""
        self._persistent.pop(node_name, None)
        self._recent.pop(node_name, None)

    async def seen(self, node_name: str, hive: NodeHive) -> None:
        """The node's hive answered: begin the remedy that its conditions ask for."""
        now = self._clock()
        conditions = hive.devices.conditions if hive.devices else []
        persistent = self._persistent.setdefault(node_name, PersistentConditions(self._after_s)).among(conditions, now)
        if not any(_allowed_remedy(one, self._allowed) for one in persistent):
            return
        async with self._one_at_a_time:
            await self._begin_next(node_name, persistent, now)

    async def _begin_next(self, node_name: str, conditions: list[Condition], now: float) -> None:
        open_jobs = await self._store.jobs.open()
        if any(job.kind == "remedy" or job.node_name == node_name for job in open_jobs):
            return
        recent = await self._recent_on(node_name, now)
        order = next_remedy(conditions, self._allowed, recent.conditions(now))
        if order is None or order.condition is None:
            return
        try:
            await self._jobs.submit("remedy", node_name, order=order)
        except OpenJobExists:
            return
        except Exception:
            # It may be in the store all the same.
            self._recent.pop(node_name, None)
            raise
        recent.note(order.condition, now)
        log.warning("the remedy %s begins on %s by itself, for %s", order.remedy, node_name, order.condition)
        await self._store.audit.note("remedy", node_name, correlation.current(), remedy=order.remedy, by_itself=True)

    async def _recent_on(self, node_name: str, now: float) -> RecentRemedies:
        """Read from the store the first time: a queen that was restarted must not repeat what she just tried.

        The store has the time of day, and the machine's clock may have been set since: a job that seems to have begun
        in the future counts as begun now.
        """
        if node_name not in self._recent:
            recent, wall = RecentRemedies(self._interval_s), datetime.now(UTC)
            for job in await self._store.jobs.since(node_name, wall - timedelta(seconds=self._interval_s)):
                if job.order is not None and job.order.condition is not None:
                    ago = (wall - job.created_at).total_seconds()
                    recent.note(job.order.condition, now - max(0.0, ago))
            self._recent[node_name] = recent
        return self._recent[node_name]
