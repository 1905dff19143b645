"""Secrets asked for by whoever answers: a stranger on a service's port, and an ssh server that takes any key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from llama_orch.client import NotTheService, Queen
from llama_orch.contract.proof import new_nonce
from tests.support import sshd
from tests.support.hives import API_TOKEN, a_hive
from tests.support.queen_process import Api, QueenProcess
from tests.support.squatter import squatting

PASSWORD = "the-sudo-password-of-somebody"
TOKEN = "hive-token-of-the-tests"


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenProcess]:
    process = QueenProcess(tmp_path)
    yield process
    process.end()


async def test_who_takes_over_the_queens_port_gets_no_token(queen: QueenProcess):
    queen.start()
    token, port = queen.token, queen.port
    async with Queen(queen.url, token) as client:
        assert (await client.proof(new_nonce())).name == "queen"
        assert await client.list_nodes() == []
        queen.stop()
        key = {"public_key": "ssh-ed25519 AAAA attacker", "fingerprint": "x", "nodes": []}
        async with squatting(lambda _: key, port=port) as squatter:
            with pytest.raises(NotTheService):
                await client.ssh_key()
    assert squatter.requests == 1 and token.encode() not in squatter.received


async def test_who_takes_over_a_hives_port_gets_no_token_from_the_queen(queen: QueenProcess):
    (queen.secrets / "hives").mkdir(parents=True)
    (queen.secrets / "hives" / "here").write_text(TOKEN)
    (queen.secrets / "hives" / "here").chmod(0o600)
    async with squatting(lambda _: {"hive_id": "here"}) as squatter:
        queen.hosts(
            "hives:\n  hosts:\n    here:\n      ansible_host: 127.0.0.1\n"
            f"      ansible_port: 1\n      hive_port: {squatter.url.rpartition(':')[2]}\n"
        )
        queen.start()
        async with queen.client() as api:
            await api.until(lambda text: 'failures_total{reason="hive_not_proven"} 0.0' not in text, "/metrics")
    assert squatter.requests and TOKEN.encode() not in squatter.received


async def test_a_real_hive_proves_itself_under_its_name(tmp_path: Path):
    async with a_hive(tmp_path) as hive:
        nonce = new_nonce()
        proof = await hive.ok("GET", f"/api/v1/proof?nonce={nonce}", token="not-the-token-of-it")
        assert proof["name"] == "tested" and API_TOKEN not in str(proof)


@pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing())
class TestPasswords:
    """The server takes any key, says that sudo wants a password, and keeps what it is given."""

    @pytest.fixture
    def server(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
        server = sshd.Sshd(tmp_path_factory.mktemp("sshd"))
        server.start()
        yield server
        server.stop()

    @pytest.fixture
    async def api(self, queen: QueenProcess, server: sshd.Sshd):
        queen.start()
        key = (queen.secrets / "ssh" / "id_ed25519.pub").read_text()
        takes = f"timeout 1 cat >> {server.folder}/taken; echo 'sudo: a password is required' >&2; exit 91"
        server.authorized.write_text(f'command="{takes}" {key}')
        async with queen.client() as api:
            yield api

    @staticmethod
    async def ended(api: Api, method: str, path: str, body: Mapping[str, object]) -> dict[str, str]:
        status, answer = await api.call(method, path, body)
        assert status == 200, answer
        return (await api.ended(answer["job_id"]))["error"]

    @staticmethod
    def taken(server: sshd.Sshd) -> str:
        path = server.folder / "taken"
        return path.read_text() if path.exists() else ""

    async def test_a_password_goes_to_a_confirmed_host_alone(self, api: Api, queen: QueenProcess, server: sshd.Sshd):
        body: dict[str, object] = {
            "node_name": "box",
            "ssh_host": "127.0.0.1",
            "ssh_port": server.port,
            "ssh_user": server.user,
            "sudo_password": PASSWORD,
        }
        fingerprint = server.fingerprint().split()[1]

        error = await self.ended(api, "POST", "/api/v1/nodes", body)
        assert error["code"] == "host_key_unconfirmed" and fingerprint in error["message"], error
        assert "host_key" in error["what_to_do"]
        assert not (queen.data / "known_hosts").exists(), "what nobody confirmed is known"

        # What was seen once is no more confirmed the second time.
        again = "/api/v1/nodes/box/provision"
        assert (await self.ended(api, "POST", again, {}))["code"] == "sudo_password_missing"
        error = await self.ended(api, "POST", again, {"sudo_password": PASSWORD})
        assert error["code"] == "host_key_unconfirmed" and fingerprint in error["message"], error

        wrong = {"sudo_password": PASSWORD, "host_key": "SHA256:" + "A" * 43}
        error = await self.ended(api, "POST", again, wrong)
        assert error["code"] == "host_key_mismatch" and fingerprint in error["message"], error
        assert PASSWORD not in self.taken(server)

        # The line of the file is as good as its fingerprint, and what was confirmed stays so.
        line = (server.folder / "host_key.pub").read_text().strip()
        error = await self.ended(api, "POST", again, {"sudo_password": PASSWORD, "host_key": line})
        assert error["code"] == "sudo_password_wrong", error
        assert self.taken(server).count(PASSWORD) == 1
        assert (await self.ended(api, "POST", again, {"sudo_password": PASSWORD}))["code"] == "sudo_password_wrong"
        assert self.taken(server).count(PASSWORD) == 2
        assert fingerprint in queen.registered.read_text() and "first-contact" not in queen.known_hosts()

    async def test_a_host_that_shows_another_key_than_was_given_is_not_even_known(
        self, api: Api, queen: QueenProcess, server: sshd.Sshd
    ):
        body: dict[str, object] = {
            "node_name": "box",
            "ssh_host": "127.0.0.1",
            "ssh_port": server.port,
            "ssh_user": server.user,
            "host_key": "SHA256:" + "A" * 43,
        }
        error = await self.ended(api, "POST", "/api/v1/nodes", body)
        assert error["code"] == "host_key_mismatch" and server.fingerprint().split()[1] in error["message"], error
        assert self.taken(server) == "" and not (queen.data / "known_hosts").exists()

    async def test_an_inventorys_password_waits_for_a_confirmed_host_too(
        self, api: Api, queen: QueenProcess, server: sshd.Sshd
    ):
        def hosts(more: str) -> str:
            return (
                "hives:\n  hosts:\n    mine:\n      ansible_host: 127.0.0.1\n"
                f"      ansible_port: {server.port}\n      ansible_user: {server.user}\n"
                f"      ansible_become_password: {PASSWORD}\n{more}"
            )

        queen.hosts(hosts(""))
        await api.until(lambda nodes: len(nodes["nodes"]) == 1, "/api/v1/nodes")
        error = await self.ended(api, "POST", "/api/v1/nodes/mine/provision", {})
        assert error["code"] == "host_key_unconfirmed", error
        key = "SHA256:" + "B" * 43
        status, answer = await api.call("POST", "/api/v1/nodes/mine/provision", {"host_key": key})
        assert status == 409 and "llama_orch_host_key" in answer["error"]["message"]
        queen.hosts(hosts(f"      llama_orch_host_key: {server.fingerprint().split()[1]}\n"))
        queen.playbook("hive", "- name: Fail here\n  ansible.builtin.fail:\n    msg: '[tried] it ran'\n")
        error = await self.ended(api, "POST", "/api/v1/nodes/mine/provision", {})
        assert error["code"] not in {"host_key_unconfirmed", "host_key_mismatch"}, error
