from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llama_orch.client import Hive, NotTheService, Queen
from llama_orch.contract.operations import PROOF
from llama_orch.contract.proof import proof_of
from llama_orch.contract.queen import NodeCreate
from llama_orch.queen.fleet.hive_tokens import HiveTokens
from llama_orch.queen.fleet.hives import HiveClient, HiveSilent
from llama_orch.queen.inventory.view import Host
from tests.support.fake_hive import fake_hive
from tests.support.serving import serving
from tests.support.squatter import squatting
from tests.unit.cli.services import TOKEN, Fleet, serve_fleet


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with serve_fleet() as served:
        yield served


def _a_proof_of(token: str, part: str):
    def answer(target: str) -> object:
        nonce = target.partition("nonce=")[2]
        return {
            "name": part,
            "proof": proof_of(token, part, part, nonce),
            "public_key": "ssh-ed25519 AAAA",
            "nodes": [],
        }

    return answer


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda _: {"name": "queen", "proof": "0" * 64}, "200 OK"),
        (lambda _: {"public_key": "ssh-ed25519 AAAA", "fingerprint": "x"}, "200 OK"),
        (lambda _: {}, "404 Not Found"),
        # Another service's proof, and that of the same token by another part.
        (_a_proof_of("another-token-of-enough-length", "queen"), "200 OK"),
        (_a_proof_of(TOKEN, "hive"), "200 OK"),
    ],
)
async def test_what_does_not_prove_itself_gets_neither_token_nor_body(answer, status: str):
    async with squatting(answer, status=status) as squatter, Queen(squatter.url, TOKEN) as queen:
        with pytest.raises(NotTheService, match="nothing was sent"):
            await queen.ssh_key()
        with pytest.raises(NotTheService):
            await queen.create_node(NodeCreate(node_name="n1", ssh_host="192.0.2.77"))
    assert squatter.requests == 2 and squatter.received.count(PROOF.path.encode()) == 2
    assert TOKEN.encode() not in squatter.received and b"192.0.2.77" not in squatter.received


async def test_what_closes_each_connection_is_not_taken_for_proven():
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        received.extend(head)
        nonce = head.split()[1].decode().partition("nonce=")[2]
        body = f'{{"name": "queen", "proof": "{proof_of(TOKEN, "queen", "queen", nonce)}"}}'
        writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    received = bytearray()
    server = await asyncio.start_server(closing, "127.0.0.1", 0)
    async with server, Queen(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", TOKEN) as queen:
        with pytest.raises(NotTheService, match="closes each connection"):
            await queen.list_nodes()
    assert TOKEN.encode() not in received


async def test_a_connection_is_asked_once_and_a_new_one_again(fleet: Fleet):
    async with Queen(fleet.urls["queen"], TOKEN) as queen:
        for _ in range(5):
            await queen.list_nodes()
        assert _proofs(await queen.metrics()) == 1
        # Many at once, beside connections that were never asked as no token went over them.
        await asyncio.gather(*(queen.health() for _ in range(20)))
        await asyncio.gather(*(queen.list_nodes() for _ in range(20)))
        assert 1 < _proofs(await queen.metrics()) <= 40


async def test_who_takes_over_the_port_gets_no_token(fleet: Fleet):
    async with Hive(fleet.urls["hive"], TOKEN) as hive:
        await hive.info()
        async with squatting(lambda _: {}) as squatter:
            hive.url = squatter.url
            with pytest.raises(NotTheService):
                await hive.list_models()
    assert TOKEN.encode() not in squatter.received


def _proofs(metrics: str) -> int:
    wanted = 'llama_orch_queen_http_requests_total{operation="proof",status="200"} '
    return next((int(float(line.removeprefix(wanted))) for line in metrics.splitlines() if line.startswith(wanted)), 0)


async def test_the_queen_sends_a_hive_s_token_to_that_hive_alone(tmp_path: Path):
    (tmp_path / "hives").mkdir()
    (tmp_path / "hives" / "n1").write_text(TOKEN)
    (tmp_path / "hives" / "n1").chmod(0o600)
    client = HiveClient(HiveTokens(tmp_path), 5)
    try:
        async with serving(fake_hive("n1", TOKEN)) as url:
            assert (await client.ask(_host(url))).hive_id == "n1"
        told = {"hive_id": "n1", "version": "0.1.0", "pid": 1, "started_at": "2026-01-01T00:00:00Z", "boot_id": "b"}
        async with squatting(lambda _: told) as squatter:
            with pytest.raises(HiveSilent) as silent:
                await client.ask(_host(squatter.url))
        assert silent.value.problem.code == "hive_not_proven"
        assert squatter.requests == 1 and TOKEN.encode() not in squatter.received
    finally:
        await client.close()


def _host(url: str) -> Host:
    return Host("n1", "127.0.0.1", 22, "u", {}, "rest", "127.0.0.1", int(url.rpartition(":")[2]))
