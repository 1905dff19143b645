"""The state machine of NodeStatus: what may follow what. Nothing else assigns a node's status."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from llama_orch.contract.common import Problem
from llama_orch.contract.queen import NodeHive, NodeStatus

if TYPE_CHECKING:
    from .store import Store


class NodeEvent(StrEnum):
    """What may happen to a node."""

    SEEN = "seen"
    MISSED = "missed"
    PROVISION_BEGAN = "provision_began"
    PROVISION_SUCCEEDED = "provision_succeeded"
    PROVISION_FAILED = "provision_failed"
    REMOVE_BEGAN = "remove_began"
    REMOVE_FAILED = "remove_failed"


class WrongTransition(Exception):
    """This event cannot happen to a node in this status."""


_S = NodeStatus
_E = NodeEvent
# While a job runs, what a probe sees changes nothing: the job decides. An ended job may be ended again, since a
# queen that was killed between two writes repeats the last step.
_BEGIN = {_E.PROVISION_BEGAN: _S.PROVISIONING, _E.REMOVE_BEGAN: _S.REMOVING}
TRANSITIONS: dict[NodeStatus, dict[NodeEvent, NodeStatus]] = {
    _S.REGISTERED: {_E.SEEN: _S.ACTIVE, _E.MISSED: _S.REGISTERED, **_BEGIN},
    _S.PROVISIONING: {
        _E.SEEN: _S.PROVISIONING,
        _E.MISSED: _S.PROVISIONING,
        _E.PROVISION_BEGAN: _S.PROVISIONING,
        _E.PROVISION_SUCCEEDED: _S.ACTIVE,
        _E.PROVISION_FAILED: _S.FAILED,
    },
    _S.ACTIVE: {_E.SEEN: _S.ACTIVE, _E.MISSED: _S.UNREACHABLE, _E.PROVISION_SUCCEEDED: _S.ACTIVE, **_BEGIN},
    _S.UNREACHABLE: {_E.SEEN: _S.ACTIVE, _E.MISSED: _S.UNREACHABLE, **_BEGIN},
    _S.FAILED: {
        _E.SEEN: _S.ACTIVE,
        _E.MISSED: _S.FAILED,
        _E.PROVISION_FAILED: _S.FAILED,
        _E.REMOVE_FAILED: _S.FAILED,
        **_BEGIN,
    },
    _S.DRAINING: {_E.SEEN: _S.DRAINING, _E.MISSED: _S.UNREACHABLE, **_BEGIN},
    _S.REMOVING: {
        _E.SEEN: _S.REMOVING,
        _E.MISSED: _S.REMOVING,
        _E.REMOVE_BEGAN: _S.REMOVING,
        _E.REMOVE_FAILED: _S.FAILED,
    },
}


def after(status: NodeStatus, event: NodeEvent) -> NodeStatus:
    """The status that follows. Raises WrongTransition where the event cannot happen."""
    try:
        return TRANSITIONS[status][event]
    except KeyError:
        raise WrongTransition(f"a node that is {status} cannot take {event}") from None


@dataclass(frozen=True)
class NodeRecord:
    """What the queen remembers of a node beside what the inventory says."""

    node_name: str
    status: NodeStatus = NodeStatus.REGISTERED
    job_id: str | None = None
    last_seen: datetime | None = None
    last_error: Problem | None = None
    hive: NodeHive | None = None
    changed_at: datetime | None = None


class NodeStates:
    """Every node's record: in memory for reading, in the store before a change is visible."""

    def __init__(self, store: Store, failed_hold_s: float) -> None:
        self._store = store
        self._failed_hold = timedelta(seconds=failed_hold_s)
        self._records: dict[str, NodeRecord] = {}
        self._unsaved: set[str] = set()

    async def load(self) -> None:
        """Read what an earlier process wrote."""
        self._records = await self._store.node_records()

    def get(self, name: str) -> NodeRecord:
        """The record of `name`; a node that was never heard of is registered."""
        return self._records.get(name) or NodeRecord(name)

    def known(self) -> list[NodeRecord]:
        """Every record there is, also of nodes that the inventory does not name any more."""
        return list(self._records.values())

    async def take(
        self, name: str, event: NodeEvent, *, problem: Problem | None = None, job_id: str | None = None
    ) -> NodeRecord:
        """Apply a job's `event` and store it. Raises WrongTransition."""
        old = self.get(name)
        status = after(old.status, event)
        new = replace(
            old,
            status=status,
            job_id=job_id or old.job_id,
            last_error=problem,
            changed_at=datetime.now(UTC) if status is not old.status else old.changed_at,
        )
        return await self._save(new)

    async def belongs_to(self, name: str, job_id: str) -> NodeRecord:
        """Note that `job_id` is the node's latest job."""
        return await self._save(replace(self.get(name), job_id=job_id))

    async def seen(self, name: str, hive: NodeHive) -> NodeRecord:
        """The hive answered as it should.

        A node whose job failed stays failed for a while, so that the failure can be read although an older hive
        still answers there.
        """
        old, now = self.get(name), datetime.now(UTC)
        if old.status is NodeStatus.FAILED and old.changed_at and now - old.changed_at < self._failed_hold:
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
            return await self._save(new)
        self._records[name] = new
        self._unsaved.add(name)
        return new

    async def missed(self, name: str, problem: Problem) -> NodeRecord:
        """The hive did not answer, too often in a row."""
        old = self.get(name)
        status = after(old.status, NodeEvent.MISSED)
        if status is not NodeStatus.UNREACHABLE:
            return old
        if old.status is status and old.last_error == problem:
            return old
        changed = datetime.now(UTC) if status is not old.status else old.changed_at
        return await self._save(replace(old, status=status, last_error=problem, changed_at=changed))

    async def forget(self, name: str) -> None:
        """The node is gone."""
        self._records.pop(name, None)
        self._unsaved.discard(name)
        await self._store.forget_node(name)

    async def flush(self) -> None:
        """Store when nodes were last seen, all in one transaction."""
        records = [self._records[name] for name in self._unsaved if name in self._records]
        self._unsaved.clear()
        await self._store.save_nodes(records)

    async def forget_all_but(self, names: Iterable[str]) -> None:
        """Forget every node that is not in `names`."""
        for name in set(self._records) - set(names):
            await self.forget(name)

    async def _save(self, record: NodeRecord) -> NodeRecord:
        await self._store.save_nodes([record])
        self._records[record.node_name] = record
        self._unsaved.discard(record.node_name)
        return record
