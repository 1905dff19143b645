"""What the queen remembers, in words of her own: the wire's types (`contract/queen.py`) are made from these."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from llama_orch.contract.common import Problem
from llama_orch.contract.devices import ConditionType, Remedy
from llama_orch.contract.queen import Job, JobKind, JobStatus, NodeHive, NodeStatus

OPEN = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING)
# Jobs are numbered as they come; a page goes on below the number of its last one.
JobCursor = int


@dataclass(frozen=True)
class NodeRecord:
    """What is known of a node beside what the inventory says."""

    node_name: str
    status: NodeStatus = NodeStatus.REGISTERED
    job_id: str | None = None
    last_seen: datetime | None = None
    last_error: Problem | None = None
    hive: NodeHive | None = None
    changed_at: datetime | None = None


@dataclass(frozen=True)
class RemedyOrder:
    """What a job of the kind remedy is to do, and for which condition the queen began it by itself."""

    remedy: Remedy
    gpu: str | None = None
    condition: ConditionType | None = None


@dataclass(frozen=True)
class JobRecord:
    """A job. `percentage` is 0 to 100; `had_password` says that it was begun with one, which is kept nowhere."""

    job_id: str
    kind: JobKind
    node_name: str
    status: JobStatus
    percentage: float
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    error: Problem | None = None
    correlation_id: str = ""
    order: RemedyOrder | None = None
    force: bool = False
    had_password: bool = False
    number: JobCursor = 0

    @property
    def is_open(self) -> bool:
        """Whether it still has work to do."""
        return self.status in OPEN

    @property
    def wire(self) -> Job:
        """As the API shows it."""
        order = self.order
        return Job(
            job_id=self.job_id,
            kind=self.kind,
            node_name=self.node_name,
            status=self.status,
            percentage=self.percentage,
            created_at=self.created_at,
            started_at=self.started_at,
            ended_at=self.ended_at,
            error=self.error,
            correlation_id=self.correlation_id,
            remedy=order and order.remedy,
            gpu=order and order.gpu,
            condition=order and order.condition,
        )
