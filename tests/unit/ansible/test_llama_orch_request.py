"""The module by which the roles ask a queen or a hive: what it sends to whom. It is run as Ansible runs it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llama_orch.contract.proof import proof_of
from tests.support.fake_hive import fake_hive
from tests.support.serving import serving
from tests.support.squatter import squatting

ROLES = Path(__file__).parents[3] / "roles"
LIBRARY = ROLES / "common" / "library"
TOKEN = "a-token-of-enough-length"
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def module() -> Any:
    spec = importlib.util.spec_from_file_location("llama_orch_request", LIBRARY / "llama_orch_request.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def main_is(tmp_path: Path) -> Callable[[int], object]:
    """Gives the one unit that the host's systemctl knows a main process."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "systemctl"
    program.write_text(f'#!/bin/sh\n[ "$4" = h.service ] && cat {tmp_path}/main || echo 0\n')
    program.chmod(0o755)
    return lambda pid: (tmp_path / "main").write_text(f"{pid}\n")


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    (tmp_path / "ansible.cfg").touch()

    async def one(url: str, **arguments: object) -> dict[str, Any]:
        given = {"url": url, "part": "hive", "name": "n1", "token": TOKEN, "timeout": 5, **arguments}
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("ansible")), "localhost", "-c", "local", "-i", "localhost,"),
            *("-e", f"ansible_python_interpreter={sys.executable}"),
            *("-M", str(LIBRARY), "-m", "llama_orch_request", "-a", json.dumps(given)),
            env={
                **os.environ,
                "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
                "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
                "ANSIBLE_REMOTE_TEMP": str(tmp_path / "ansible"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        text = out.decode()
        assert TOKEN not in text + err.decode()
        assert " => " in text, text + err.decode()
        return json.loads(text.partition(" => ")[2])

    return one


@pytest.fixture
async def hive() -> AsyncIterator[str]:
    async with serving(fake_hive("n1", TOKEN)) as url:
        yield url


def _proving(target: str) -> object:
    """What a service answers that knows the token, here on a port that is not its own."""
    return {"name": "n1", "proof": proof_of(TOKEN, "hive", "n1", target.partition("nonce=")[2]), "workers": []}


async def test_a_hive_that_proves_itself_is_asked(hive: str, ask: Ask, main_is: Callable[[int], object]):
    main_is(os.getpid())
    told = await ask(hive, path="/api/v1/hive", unit="h.service")
    assert (told["status"], told["json"]["hive_id"], told["changed"]) == (200, "n1", False)
    assert (await ask(hive))["name"] == "n1"


async def test_a_status_that_is_not_wanted_is_a_failure_that_shows_the_answer(hive: str, ask: Ask):
    told = await ask(hive, path="/api/v1/nowhere", method="POST", body={"a": 1})
    assert told["status"] == 404 and told["json"]["error"]["code"] == "not_found" and "status 404" in told["msg"]
    told = await ask(hive, path="/api/v1/nowhere", status_code=[200, 404])
    assert told["status"] == 404 and not told.get("failed")


async def test_what_cannot_prove_itself_gets_no_token(ask: Ask):
    async with squatting(lambda _: {"hive_id": "n1", "public_key": "ssh-ed25519 AAAA"}) as squatter:
        told = await ask(squatter.url, path="/api/v1/hive")
    assert told["status"] == -1 and "No token was sent" in told["msg"]
    assert squatter.requests == 1 and TOKEN.encode() not in squatter.received


async def test_another_hive_with_the_same_token_gets_nothing(ask: Ask):
    async with serving(fake_hive("n2", TOKEN)) as url:
        told = await ask(url, path="/api/v1/hive")
    assert told["status"] == -1 and "'n2', not 'n1'" in told["msg"]


async def test_on_the_host_the_units_own_process_must_hold_the_socket(ask: Ask, main_is: Callable[[int], object]):
    """A relay knows no token, and passes the proof: asked for on the host itself, it is found out all the same."""
    for pid in (0, os.getppid()):
        main_is(pid)
        async with squatting(_proving) as squatter:
            told = await ask(squatter.url, path="/api/v1/workers", unit="h.service")
        assert told["status"] == -1 and "not in the hands of h.service" in told["msg"]
        assert squatter.requests == 1 and TOKEN.encode() not in squatter.received


async def test_who_closes_after_the_proof_is_not_called_again(ask: Ask, module: Any):
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        received.extend(head)
        body = json.dumps(_proving(head.split()[1].decode())).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    received = bytearray()
    server = await asyncio.start_server(closing, "127.0.0.1", 0)
    async with server:
        told = await ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", path="/api/v1/workers")
    assert told["status"] == -1 and TOKEN.encode() not in received


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::"])
def test_the_other_end_of_a_connection_is_found(module: Any, address: str):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        try:
            listener.bind((address, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listener.listen()
        # One that listens for both kinds is reached by the other one.
        with socket.create_connection(("127.0.0.1" if address == "::" else address, listener.getsockname()[1])) as ours:
            theirs, _ = listener.accept()
            with theirs:
                inode = module.other_end(ours.getsockname()[:2], ours.getpeername()[:2])
                assert inode == os.fstat(theirs.fileno()).st_ino
                assert module.holds(os.getpid(), inode) and not module.holds(os.getppid(), inode)


def test_each_role_that_asks_has_the_module():
    for path in sorted(ROLES.glob("*/tasks/*.yml")):
        if "llama_orch_request:" in path.read_text(encoding="utf-8"):
            assert (path.parents[1] / "library" / "llama_orch_request.py").is_file(), path


def test_no_role_sends_a_token_otherwise():
    for path in sorted(ROLES.glob("*/*/*.yml")):
        text = path.read_text(encoding="utf-8")
        assert "Authorization" not in text and "Bearer" not in text, path


def test_the_module_proves_as_the_contract_does(module: Any):
    from llama_orch.contract import proof

    assert module.PURPOSE == proof._PURPOSE
