"""The state machine of NodeStatus: what may follow what. Nothing else assigns a node's status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum

from llama_orch.contract.common import Problem
from llama_orch.contract.queen import NodeHive, NodeStatus

from ..records import NodeRecord
from ..store.store import Store

log = logging.getLogger(__name__)


class NodeEvent(StrEnum):
    """What may happen to a node."""

    SEEN = "seen"
    MISSED = "missed"
    PROVISION_BEGAN = "provision_began"
    PROVISION_SUCCEEDED = "provision_succeeded"
    PROVISION_FAILED = "provision_failed"
    REMOVE_BEGAN = "remove_began"
    REMOVE_FAILED = "remove_failed"


_S = NodeStatus
_E = NodeEvent
# What a probe that the hive answers, and one that it does not, makes of a node. While a job runs it changes nothing:
# the job decides.
_PROBED = {
    _S.REGISTERED: (_S.ACTIVE, _S.REGISTERED),
    _S.PROVISIONING: (_S.PROVISIONING, _S.PROVISIONING),
    _S.ACTIVE: (_S.ACTIVE, _S.UNREACHABLE),
    _S.UNREACHABLE: (_S.ACTIVE, _S.UNREACHABLE),
    _S.FAILED: (_S.ACTIVE, _S.FAILED),
    _S.DRAINING: (_S.DRAINING, _S.UNREACHABLE),
    _S.REMOVING: (_S.REMOVING, _S.REMOVING),
}
# What a job says holds whatever the record says: a queen that was killed between two writes repeats the last step, and
# a host that left the inventory and came back during its job begins anew as registered.
_OF_A_JOB = {
    _E.PROVISION_BEGAN: _S.PROVISIONING,
    _E.PROVISION_SUCCEEDED: _S.ACTIVE,
    _E.PROVISION_FAILED: _S.FAILED,
    _E.REMOVE_BEGAN: _S.REMOVING,
    _E.REMOVE_FAILED: _S.FAILED,
}


def after(status: NodeStatus, event: NodeEvent) -> NodeStatus:
    """The status that follows; every event may come in every status."""
    if event in _OF_A_JOB:
        return _OF_A_JOB[event]
    return _PROBED[status][0 if event is NodeEvent.SEEN else 1]


class NodeStates:
    """Every node's record: in memory for reading, in the store before what a job changes is visible."""

    def __init__(self, store: Store, failed_hold_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._failed_hold_s = failed_hold_s
        self._clock = clock
        # Until when a node whose job failed stays so, by a clock that nobody sets.
        self._held_until: dict[str, float] = {}
        self._records: dict[str, NodeRecord] = {}
        self._unsaved: set[str] = set()
        # A change reads the record, waits for the disk and is visible then: none may come in between. The store has
        # one thread, so that nothing is gained by one lock for each node.
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Read what an earlier process wrote.

        How long ago a job failed is told by the wall's clock alone, which may have been set meanwhile: no node is held
        longer for it than it would be anew.
        """
        self._records = await self._store.nodes.all()
        for name, record in self._records.items():
            if record.status is NodeStatus.FAILED and record.changed_at is not None:
                ago = (datetime.now(UTC) - record.changed_at).total_seconds()
                self._hold(name, self._failed_hold_s - max(0.0, ago))

    def get(self, name: str) -> NodeRecord:
        """The record of `name`; a node that was never heard of is registered."""
        return self._records.get(name) or NodeRecord(name)

    def known(self) -> list[NodeRecord]:
        """Every record there is, also of nodes that the inventory does not name any more."""
        return list(self._records.values())

    async def take(
        self, name: str, event: NodeEvent, *, problem: Problem | None = None, job_id: str | None = None
    ) -> NodeRecord:
        """Apply a job's `event` and store it."""
        async with self._changing:
            old = self.get(name)
            status = after(old.status, event)
            new = replace(
                old,
                status=status,
                job_id=job_id or old.job_id,
                last_error=problem,
                changed_at=datetime.now(UTC) if status is not old.status else old.changed_at,
            )
            await self._save(new)
            if status is NodeStatus.FAILED:
                self._hold(name, self._failed_hold_s)
            return new

    def _hold(self, name: str, seconds: float) -> None:
        self._held_until[name] = self._clock() + seconds

    async def belongs_to(self, name: str, job_id: str) -> NodeRecord:
        """Note that `job_id` is the node's latest job."""
        async with self._changing:
            return await self._save(replace(self.get(name), job_id=job_id))

    async def seen(self, name: str, hive: NodeHive) -> NodeRecord:
        """The hive answered as it should.

        A node whose job failed stays failed for a while, so that the failure can be read although an older hive
        still answers there.
        """
        async with self._changing:
            return await self._seen(name, hive)

    async def _seen(self, name: str, hive: NodeHive) -> NodeRecord:
        old, now = self.get(name), datetime.now(UTC)
        if old.status is NodeStatus.FAILED and self._clock() < self._held_until.get(name, 0.0):
            new = replace(old, last_seen=now, hive=hive)
        else:
            status = after(old.status, NodeEvent.SEEN)
            became = status is not old.status
            error = None if status is NodeStatus.ACTIVE else old.last_error
            new = replace(
                old,
                status=status,
                last_seen=now,
                hive=hive,
                last_error=error,
                changed_at=now if became else old.changed_at,
            )
        if new.status is not old.status or new.last_error != old.last_error:
            return await self._observed(new)
        self._records[name] = new
        self._unsaved.add(name)
        return new

    async def missed(self, name: str, problem: Problem) -> NodeRecord:
        """The hive did not answer, too often in a row."""
        async with self._changing:
            old = self.get(name)
            status = after(old.status, NodeEvent.MISSED)
            if status is not NodeStatus.UNREACHABLE:
                return old
            if old.status is status and old.last_error == problem:
                return old
            changed = datetime.now(UTC) if status is not old.status else old.changed_at
            return await self._observed(replace(old, status=status, last_error=problem, changed_at=changed))

    async def forget(self, name: str) -> None:
        """The node is gone."""
        async with self._changing:
            await self._store.nodes.forget(name)
            self._records.pop(name, None)
            self._held_until.pop(name, None)
            self._unsaved.discard(name)

    async def flush(self) -> None:
        """Store when nodes were last seen, all in one transaction."""
        async with self._changing:
            records = [self._records[name] for name in self._unsaved if name in self._records]
            await self._store.nodes.save(records)
            self._unsaved.clear()

    async def forget_all_but(self, names: Iterable[str]) -> None:
        """Forget every node that is not in `names`."""
        for name in set(self._records) - set(names):
            await self.forget(name)

    async def _observed(self, record: NodeRecord) -> NodeRecord:
        """What a probe saw is so whether the disk takes it or not; what it does not, `flush` tries again."""
        try:
            return await self._save(record)
        except Exception as error:
            log.error("that %s is %s cannot be written yet: %r", record.node_name, record.status, error)  # noqa: TRY400
            self._records[record.node_name] = record
            self._unsaved.add(record.node_name)
            return record

    async def _save(self, record: NodeRecord) -> NodeRecord:
        await self._store.nodes.save([record])
        self._records[record.node_name] = record
        self._unsaved.discard(record.node_name)
        return record
