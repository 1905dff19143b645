"""Whoever has the queen's api-token, and the machine that she runs on: `make up` makes it a node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_orch.cli import home_files
from tests.support.queen_process import QueenProcess


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenProcess]:
    """As `make up` starts it: with settings of its own, and this machine as node local."""
    queen = QueenProcess(tmp_path, change_own_machine=False, provision_on_inventory_change=True)
    for name in ("hive", "reboot", "remove"):
        queen.playbook(
            name,
            f"- name: Change the machine\n  ansible.builtin.file:\n    path: {tmp_path}/changed\n    state: touch\n",
        )
    home_files.write_inventory(queen.inventory, "127.0.0.1", 1)
    yield queen
    queen.end()


async def test_it_is_neither_provisioned_nor_rebooted(queen: QueenProcess, tmp_path: Path):
    queen.start()
    async with queen.client() as api:
        node = await api.node("local")
        assert (node["status"], node["job_id"]) == ("registered", None)
        for path, body in (("provision", {}), ("remedy", {"remedy": "reboot"})):
            status, answer = await api.call("POST", f"/api/v1/nodes/local/{path}", body)
            assert (status, answer["error"]["code"]) == (409, "own_machine_not_allowed"), answer
            assert "LLAMA_ORCH_QUEEN_CHANGE_OWN_MACHINE" in answer["error"]["message"]
        # Nor by itself, when it comes into the inventory.
        queen.hosts(
            "hives:\n  hosts:\n    local: {ansible_connection: local}\n    second: {ansible_connection: local}\n"
        )
        await api.until(lambda answer: len(answer["nodes"]) == 2, "/api/v1/nodes")
        assert (await api.call("GET", "/api/v1/jobs"))[1] == {"jobs": []}
    assert not (tmp_path / "changed").exists()
