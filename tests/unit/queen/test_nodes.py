"""What the queen does about hosts that come into the inventory and leave it, also where that fails at first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from llama_orch.contract.devices import Remedy
from llama_orch.contract.errors import ApiError, Conflict, NotReady
from llama_orch.contract.queen import JobKind, JobStatus, RemedyRequest
from llama_orch.queen.ansible.ssh_keys import KnownHosts
from llama_orch.queen.inventory.registered_file import BrokenFile
from llama_orch.queen.inventory.view import Host
from llama_orch.queen.nodes import Nodes
from llama_orch.queen.records import JobRecord, NodeRecord
from llama_orch.queen.store.jobs import OpenJobExists


class Site:
    """An inventory, records and jobs of which each may fail."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {"old": self.host("old")}
        self.groups: frozenset[str] = frozenset()
        self.problem = None
        self.forgotten: list[list[str]] = []
        self.submitted: list[str] = []
        self.fails: set[str] = set()
        self.busy: set[str] = set()
        self.woken = 0

    @staticmethod
    def host(name: str) -> Host:
        return Host(name, name, 22, "u", {}, "inventory", name, 8081)

    def comes(self, *names: str) -> None:
        self.hosts = self.hosts | {name: self.host(name) for name in names}

    async def refresh(self) -> bool:
        return False  # a job has looked just before

    def get(self, name: str) -> NodeRecord:
        return NodeRecord(name)

    async def forget_all_but(self, names: Iterable[str]) -> None:
        if "forget" in self.fails:
            raise OSError(28, "No space left on device")
        self.forgotten.append(sorted(names))

    async def submit(self, _kind: JobKind, name: str, **_: object) -> JobRecord:
        if name in self.fails:
            raise OSError(28, "No space left on device")
        job = JobRecord("j", "remove", name, JobStatus.RUNNING, 0.0, datetime.now(UTC))
        if name in self.busy:
            raise OpenJobExists(job)
        self.submitted.append(name)
        return job

    def changed(self) -> None:
        self.woken += 1


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def nodes(site: Site, tmp_path: Path) -> Nodes:
    around = cast("Any", site)
    nodes = Nodes(
        inventory=around, states=around, store=around, jobs=around, known_hosts=KnownHosts(tmp_path / "k"),
        tokens=around, key_file=tmp_path, login_user="u", provision_on_change=True, change_own_machine=False,
        changed=site.changed,
    )  # fmt: skip
    nodes.begin()
    return nodes


async def test_what_is_there_at_the_start_did_not_come(site: Site, nodes: Nodes):
    await nodes.inventory_changed()
    assert site.submitted == site.forgotten == [] and site.woken == 0


async def test_a_host_that_a_job_saw_first_is_provisioned_all_the_same(site: Site, nodes: Nodes):
    site.comes("new")
    await nodes.inventory_changed()
    await nodes.inventory_changed()
    assert site.submitted == ["new"] and site.woken == 1 and site.forgotten == [["new", "old"]]


async def test_one_host_that_cannot_be_provisioned_costs_the_others_nothing_and_is_tried_again(
    site: Site, nodes: Nodes
):
    site.comes("a", "b", "c")
    site.fails.add("b")
    await nodes.inventory_changed()
    assert site.submitted == ["a", "c"]
    site.fails.clear()
    await nodes.inventory_changed()
    await nodes.inventory_changed()
    assert site.submitted == ["a", "c", "b"]


async def test_a_host_that_another_job_works_on_is_left_to_it(site: Site, nodes: Nodes):
    site.comes("a", "b")
    site.busy.add("a")
    await nodes.inventory_changed()
    site.busy.clear()
    await nodes.inventory_changed()
    assert site.submitted == ["b"]


async def test_what_is_to_be_forgotten_is_at_the_next_look_where_the_disk_is_full(site: Site, nodes: Nodes):
    site.comes("new")
    site.fails.add("forget")
    with pytest.raises(OSError, match="No space"):
        await nodes.inventory_changed()
    site.fails.clear()
    await nodes.inventory_changed()
    assert site.forgotten == [["new", "old"]] and site.submitted == ["new"]


async def test_a_client_is_told_of_an_open_job_what_the_store_says_of_it(site: Site, nodes: Nodes):
    site.busy.add("old")
    with pytest.raises(Conflict, match=r"job j \(remove\) works on node old") as raised:
        await nodes.remedy("old", RemedyRequest(remedy=Remedy.REBOOT))
    assert raised.value.error_code == "job_open"
    assert raised.value.details == {"job_id": "j", "kind": "remove", "status": JobStatus.RUNNING}


@pytest.mark.parametrize(
    ("fails", "status", "code"),
    [
        (BrokenFile("00-registered.yml is not as the queen wrote it"), NotReady.status, "inventory_broken"),
        (OSError(28, "No space left on device"), 500, "inventory_unwritable"),
    ],
)
async def test_a_client_is_told_why_a_node_cannot_be_written_down(
    site: Site, nodes: Nodes, fails: Exception, status: int, code: str
):
    async def expect_host_key(_name: str, _host_key: str) -> None:
        raise fails

    host = replace(site.host("old"), source="rest")
    site.hosts = {"old": host}
    vars(site)["expect_host_key"] = expect_host_key
    with pytest.raises(ApiError) as raised:
        await nodes.provision("old", None, "SHA256:" + "A" * 43)
    assert (raised.value.status, raised.value.error_code) == (status, code)
