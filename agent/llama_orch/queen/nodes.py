"""Nodes: what the inventory says of a host, together with what the queen knows of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama_orch.contract.common import Problem
from llama_orch.contract.devices import Devices
from llama_orch.contract.errors import ApiError, BadRequest, Conflict, NotFound
from llama_orch.contract.operations import PROVISION_NODE
from llama_orch.contract.queen import HostKey, Job, Node, NodeCreate, NodeStatus, RemedyRequest
from llama_orch.web import correlation, principal

from .ansible import failures
from .ansible.preflight import port_answers
from .ansible.ssh_keys import KnownHosts, NoHostKey, RecordedKey, host_key_fingerprint
from .fleet.hive_tokens import HiveTokens
from .fleet.states import NodeStates
from .inventory.registered_file import AlreadyRegistered, RegisteredHost
from .inventory.view import Host, Inventory
from .jobs.engine import Jobs
from .records import NodeRecord, RemedyOrder
from .store.jobs import OpenJobExists
from .store.store import Store

log = logging.getLogger(__name__)

_PORT_TIMEOUT_S = 3.0


class NodeFacts(NamedTuple):
    """All that a node's answer is made of: equal facts make equal answers."""

    host: Host
    record: NodeRecord
    host_key: RecordedKey | None


class Nodes:
    """What can be done with nodes. Raises the contract's errors."""

    def __init__(
        self,
        *,
        inventory: Inventory,
        states: NodeStates,
        store: Store,
        jobs: Jobs,
        known_hosts: KnownHosts,
        tokens: HiveTokens,
        key_file: Path,
        login_user: str,
        provision_on_change: bool,
        change_own_machine: bool,
        changed: Callable[[], None],
        problems: Callable[[], Sequence[Problem]] = tuple,
    ) -> None:
        self._inventory = inventory
        self._states = states
        self._store = store
        self._jobs = jobs
        self._known_hosts = known_hosts
        self._tokens = tokens
        self._key_file = key_file
        self._login_user = login_user
        self._provision_on_change = provision_on_change
        self._change_own_machine = change_own_machine
        self._changed = changed
        self._problems = problems
        self._registering = asyncio.Lock()
        self._settled: dict[str, Host] = {}

    def begin(self) -> None:
        """The hosts that are there now are none that came."""
        self._settled = self._inventory.hosts

    @property
    def problems(self) -> list[Problem]:
        """What is wrong with the files that tell of nodes, and with the queen's own database."""
        return [*([self._inventory.problem] if self._inventory.problem else []), *self._problems()]

    def names(self) -> list[str]:
        """Of every node, sorted."""
        return sorted(self._inventory.hosts)

    def facts(self, name: str) -> NodeFacts | None:
        """What is known of a node, its ssh host key as of the last look; None where there is no such node."""
        host = self._inventory.hosts.get(name)
        return None if host is None else self._facts_of(host)

    def _facts_of(self, host: Host) -> NodeFacts:
        return NodeFacts(host, self._states.get(host.name), self._known_hosts.best_of(host.ssh_host, host.ssh_port))

    async def look_at_host_keys(self) -> None:
        """Read the file of ssh host keys again where it changed: in a thread, as it may have thousands of lines."""
        await asyncio.to_thread(self._known_hosts.look)

    def devices(self) -> list[Devices]:
        """What hives last told of their hardware."""
        hives = (self._states.get(name).hive for name in self._inventory.hosts)
        return [hive.devices for hive in hives if hive and hive.devices]

    async def get(self, name: str) -> Node:
        """One node. Raises NotFound."""
        await self.look_at_host_keys()
        return self.shape(self._facts_of(self._host(name)))

    def counts(self) -> dict[NodeStatus, int]:
        """How many nodes there are of each status, zeros included."""
        found = dict.fromkeys(NodeStatus, 0)
        for name in self._inventory.hosts:
            found[self._states.get(name).status] += 1
        return found

    async def register(self, wanted: NodeCreate) -> Node:
        """Write a new node into the inventory and begin to provision it. Raises Conflict where the name is taken."""
        async with self._registering:
            if wanted.node_name in self._inventory.hosts:
                raise await self._taken(wanted.node_name)
            if wanted.node_name in self._inventory.groups:
                # `--limit NAME` would then mean every host of the group.
                raise Conflict(f"{wanted.node_name} is a group of the inventory; choose another name", code="is_group")
            host = RegisteredHost(
                name=wanted.node_name,
                ssh_host=wanted.ssh_host,
                ssh_port=wanted.ssh_port,
                ssh_user=wanted.ssh_user or self._login_user,
                key_file=str(self._key_file),
                labels=dict(wanted.labels),
                host_key=_fingerprint(wanted.host_key) if wanted.host_key else "",
            )
            # What lies there of an earlier node of this name is another machine's.
            self._tokens.forget(wanted.node_name)
            await self._write(host)
        password = wanted.sudo_password.get_secret_value() if wanted.sudo_password else None
        await self._begin_provisioning(wanted.node_name, password)
        await self._audit("register", wanted.node_name)
        self._changed()
        return await self.get(wanted.node_name)

    async def provision(self, name: str, password: str | None, host_key: str | None = None) -> Job:
        """Provision a node again; answers the open job where there is one. Raises NotFound, Conflict, BadRequest."""
        host = self._host_to_change(name)
        if host_key is not None:
            await self._expect(host, _fingerprint(host_key))
        await self._audit("provision", name)
        return await self._begin_provisioning(name, password)

    async def remedy(self, name: str, wanted: RemedyRequest) -> Job:
        """Begin to mend what is wrong with a node's GPUs. Raises NotFound, and Conflict while a job is open."""
        self._host_to_change(name)
        password = wanted.sudo_password.get_secret_value() if wanted.sudo_password else None
        job = await self._jobs.submit("remedy", name, password=password, order=RemedyOrder(wanted.remedy, wanted.gpu))
        await self._audit("remedy", name, remedy=wanted.remedy.value)
        return job.wire

    async def delete(self, name: str, *, force: bool) -> Job:
        """Take the hive off the host and forget the node. Raises NotFound, Conflict."""
        host = self._host(name)
        if host.source == "inventory":
            file = await asyncio.to_thread(self._inventory.file_of, name)
            raise Conflict(
                f"node {name} stands in {file}, which is yours: take it out there, and run playbooks/remove.yml "
                "first to take the hive off the host",
                code="node_in_inventory_file",
                file=file,
            )
        open_job = await self._store.jobs.open_of(name)
        if open_job is not None:
            raise OpenJobExists(open_job)
        if not force and not await port_answers(host, _PORT_TIMEOUT_S):
            raise Conflict(
                f"nothing answers at {host.ssh_host} port {host.ssh_port}, so the hive cannot be taken off node "
                f"{name}: add ?force=true to forget the node all the same",
                code="node_unreachable",
                status=self._states.get(name).status,
            )
        job = await self._jobs.submit("remove", name, force=force)
        await self._audit("remove", name, force=force)
        return job.wire

    async def inventory_changed(self) -> None:
        """Look at the inventory's files again, and do what the site wants done about new hosts.

        What fails is done at the next call. Jobs look at the files too, so what counts is what was settled here.
        """
        await self._inventory.refresh()
        hosts = self._inventory.hosts
        if hosts == self._settled:
            return
        self._changed()
        await self._states.forget_all_but(hosts)
        failed = [name for name in sorted(hosts.keys() - self._settled.keys()) if not await self._welcome(hosts[name])]
        # The others are settled; these are tried again at the next look.
        self._settled = {name: host for name, host in hosts.items() if name not in failed}

    async def _welcome(self, host: Host) -> bool:
        """Do with a new host what the site wants; False where that failed."""
        fresh = self._states.get(host.name).status is NodeStatus.REGISTERED
        allowed = self._change_own_machine or not host.is_own_machine
        if not (self._provision_on_change and host.source == "inventory" and fresh and allowed):
            return True
        log.info("provisioning %s, which came into the inventory", host.name)
        try:
            await self._begin_provisioning(host.name, None)
        except Conflict as error:
            log.info("%s is not provisioned: %s", host.name, error.message)
        except Exception:
            log.exception("%s could not be provisioned, and will be at the next look", host.name)
            return False
        return True

    async def _begin_provisioning(self, name: str, password: str | None) -> Job:
        try:
            return (await self._jobs.submit("provision", name, password=password)).wire
        except OpenJobExists as exists:
            if exists.job.kind != "provision":
                raise
            return exists.job.wire

    async def _expect(self, host: Host, host_key: str) -> None:
        if host.source == "inventory":
            file = await asyncio.to_thread(self._inventory.file_of, host.name)
            raise Conflict(
                f"node {host.name} stands in {file}, which is yours: set llama_orch_host_key: {host_key} for it there",
                code="node_in_inventory_file",
                file=file,
            )
        with _written():
            await self._inventory.expect_host_key(host.name, host_key)

    async def _write(self, host: RegisteredHost) -> None:
        try:
            with _written():
                await self._inventory.register(host)
        except AlreadyRegistered:
            raise await self._taken(host.name) from None

    async def _taken(self, name: str) -> Conflict:
        record = self._states.get(name)
        path = PROVISION_NODE.url(node_name=name)
        return Conflict(
            f"node {name} exists already and is {record.status}; POST {path} provisions it again",
            code="node_exists",
            node_name=name,
            status=record.status,
            job_id=record.job_id,
            path=path,
        )

    async def _audit(self, action: str, name: str, **details: Any) -> None:
        asker = principal.current()
        await self._store.audit.note(
            action, name, correlation.current(), principal=asker.principal, address=asker.address, **details
        )

    def _host(self, name: str) -> Host:
        host = self._inventory.hosts.get(name)
        if host is None:
            raise NotFound(f"there is no node {name[:80]}; GET /api/v1/nodes lists them")
        return host

    def _host_to_change(self, name: str) -> Host:
        host = self._host(name)
        if host.is_own_machine and not self._change_own_machine:
            problem = failures.own_machine(name)
            raise Conflict(f"{problem.message}. {problem.what_to_do}", code=problem.code)
        return host

    @staticmethod
    def shape(facts: NodeFacts) -> Node:
        """What a client is told of these facts."""
        host, record, key = facts.host, facts.record, facts.host_key
        return Node(
            node_name=host.name,
            ssh_host=host.ssh_host,
            ssh_port=host.ssh_port,
            ssh_user=host.ssh_user,
            status=record.status,
            labels=host.labels,
            job_id=record.job_id,
            last_seen=record.last_seen,
            last_error=record.last_error,
            host_key=key and HostKey(type=key.type, fingerprint=key.fingerprint),
            hive=record.hive,
            source=host.source,
        )


def _fingerprint(given: str) -> str:
    try:
        return host_key_fingerprint(given)
    except NoHostKey as error:
        raise BadRequest(f"host_key: {error}") from None


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """What a disk may refuse where the queen's inventory file is written, as an error of the contract."""
    try:
        yield
    except OSError as error:
        log.error("the inventory cannot be written: %s", error)  # noqa: TRY400  the reason is all there is
        raise ApiError(
            f"the inventory cannot be written on the queen's machine: {error.strerror}", code="inventory_unwritable"
        ) from None
