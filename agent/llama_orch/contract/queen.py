"""What the queen takes and answers: nodes, jobs and their events, the ssh key. Times are RFC 3339 UTC."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, SecretStr, model_validator

from .common import Problem, Request, Response, WorkerCounts
from .devices import ConditionType, Devices, Remedy
from .patterns import HostKeyGiven, LabelKey, LabelValue, NodeName, SshHost, SshUser, WholeGpuUuid

# The most that `limit` of a list may ask for.
LARGEST_PAGE = 500
# Names that Ansible gives a meaning of its own.
_RESERVED = frozenset({"all", "ungrouped", "localhost", "hives", "queen", "implicit-localhost"})


def _not_reserved(name: str) -> str:
    if name in _RESERVED:
        raise ValueError(f"'{name}' is a name that Ansible keeps for itself; choose another")
    return name


def _printable(secret: SecretStr) -> SecretStr:
    value = secret.get_secret_value()
    if not 1 <= len(value) <= 256 or any(c in value for c in "\r\n\0"):
        raise ValueError("must be 1 to 256 characters without newlines")
    return secret


FreeNodeName = Annotated[NodeName, AfterValidator(_not_reserved)]
SudoPassword = Annotated[SecretStr, AfterValidator(_printable)]


class NodeStatus(StrEnum):
    """The life of a node; `queen/fleet/states.py` owns the transitions."""

    REGISTERED = "registered"
    PROVISIONING = "provisioning"
    ACTIVE = "active"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    DRAINING = "draining"
    REMOVING = "removing"


class JobStatus(StrEnum):
    """The life of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


JobKind = Literal["provision", "remove", "remedy"]
EventKind = Literal["phase", "play", "task", "output", "end"]
Outcome = Literal["started", "ok", "changed", "skipped", "failed", "unreachable"]


class NodeCreate(Request):
    """`POST /api/v1/nodes`. Without `ssh_user` it is the queen's `default_ssh_user`.

    The sudo password stays in the queen's memory, for this job alone. `host_key` is the ssh host key that the host has
    to show; without it no password is sent to a host that nobody has confirmed.
    """

    node_name: FreeNodeName
    ssh_host: SshHost
    ssh_port: int = Field(default=22, ge=1, le=65535)
    ssh_user: SshUser | None = None
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=64)
    sudo_password: SudoPassword | None = None
    host_key: HostKeyGiven | None = None


class ProvisionRequest(Request):
    """`POST …/provision`: the body may be empty. `host_key` is kept with the node, as when it was registered."""

    sudo_password: SudoPassword | None = None
    host_key: HostKeyGiven | None = None


class RemedyRequest(Request):
    """`POST …/remedy`: run the playbook of this name on the node.

    `gpu` is the UUID of the GPU to reset; without it all that need it are.
    """

    remedy: Remedy
    gpu: WholeGpuUuid | None = None
    sudo_password: SudoPassword | None = None

    @model_validator(mode="after")
    def _one_gpu_is_for_one_remedy(self) -> Self:
        if self.gpu is not None and self.remedy is not Remedy.RESET_GPU:
            raise ValueError("gpu: goes with the remedy reset_gpu only")
        return self


class NodeHive(Response):
    """What the node's hive last told."""

    hive_id: str
    version: str
    url: str
    workers: WorkerCounts
    devices: Devices | None = None


class HostKey(Response):
    """The ssh host key that first contact recorded."""

    type: str
    fingerprint: str


class Node(Response):
    """A node as the queen knows it. `source` says which inventory file it stands in."""

    node_name: str
    ssh_host: str
    ssh_port: int
    ssh_user: str
    status: NodeStatus
    labels: dict[str, str]
    job_id: str | None
    last_seen: AwareDatetime | None
    last_error: Problem | None
    host_key: HostKey | None
    hive: NodeHive | None
    source: Literal["rest", "inventory"] = "rest"


class NodeList(Response):
    """`GET /api/v1/nodes`, by name; `problems` are those of the inventory's files and of the queen's own.

    `next_cursor` is there where a page was asked for, and null on the last one.
    """

    nodes: list[Node]
    problems: list[Problem] = Field(default=[])
    next_cursor: str | None = None


class Job(Response):
    """One durable piece of work; `percentage` is 0 to 100.

    A remedy has its name, the GPU that it is meant for where there is one, and the condition for which the queen began
    it by itself where it did.
    """

    job_id: str
    kind: JobKind
    node_name: str
    status: JobStatus
    percentage: float
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    error: Problem | None
    correlation_id: str
    remedy: Remedy | None = None
    gpu: str | None = None
    condition: ConditionType | None = None


class JobList(Response):
    """`GET /api/v1/jobs`, newest first.

    `next_cursor` is there where a page was asked for or older ones follow, and null on the last page.
    """

    jobs: list[Job]
    next_cursor: str | None = None


class JobEvent(Response):
    """One line of a job's story; `duration_s` is seconds, `percentage` 0 to 100."""

    seq: int
    at: AwareDatetime
    kind: EventKind
    play: str | None = None
    task: str | None = None
    host: str | None = None
    outcome: Outcome | None = None
    duration_s: float | None = None
    percentage: float
    message: str | None = None
    status: JobStatus | None = None


class SshKey(Response):
    """The public half of the queen's ssh key, to be put into a host's authorized_keys."""

    public_key: str
    fingerprint: str
