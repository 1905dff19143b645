"""The roles, where a stranger of this machine holds the port of the queen or of the hive that they ask."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml

from llama_orch.contract.proof import proof_of
from tests.support.squatter import squatting

ROLES = Path(__file__).parents[2] / "roles"
TOKEN = "the-api-token-of-this-machine"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43 + " llama-orch-queen@head"
ATTACKERS = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 43 + " attacker"
Play = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Runs entry points of a role on this machine, whose systemctl says that the service is this process."""
    (tmp_path / "bin").mkdir()
    for name, text in (("systemctl", f"echo {os.getpid()}"), ("journalctl", "echo it says nothing")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    secrets = tmp_path / "secrets"
    (secrets / "hives").mkdir(parents=True)
    for name in ("api-token", "hives/here", "inference-token"):
        (secrets / name).write_text(TOKEN + "\n")
    home = tmp_path / "home"
    home.mkdir()

    async def run(
        role: str, entry: str, port: int, main_pid: int | None = None, **variables: object
    ) -> tuple[int, str]:
        if main_pid is not None:
            (tmp_path / "bin" / "systemctl").write_text(f"#!/bin/sh\necho {main_pid}\n")
        task = {"ansible.builtin.include_role": {"name": role, "tasks_from": entry}}
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        plays = [{"hosts": "here", "gather_facts": False, "tasks": [task], "environment": {"PATH": path}}]
        (tmp_path / "play.yml").write_text(yaml.safe_dump(plays))
        (tmp_path / "hosts.yml").write_text(json.dumps({"hives": {"hosts": {"here": {"ansible_connection": "local"}}}}))
        known = {
            "_queen_project": str(tmp_path / "project"),
            "queen_secrets_dir": str(secrets),
            "hive_secrets_dir": str(secrets),
            "queen_port": port,
            "hive_port": port,
            "queen_start_timeout_s": 2,
            "hive_start_timeout_s": 2,
            "ansible_python_interpreter": sys.executable,
            # What is hidden could not be searched for the token.
            "queen_no_log": False,
            "hive_no_log": False,
            **variables,
        }
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(tmp_path / "hosts.yml")),
            *("-e", json.dumps(known), str(tmp_path / "play.yml")),
            env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROLES), "ANSIBLE_NOCOLOR": "1", "HOME": str(home)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode is not None
        return process.returncode, " ".join(out.decode().split())

    return run


def a_key(tmp_path: Path, text: str) -> None:
    """What stands in the queen's file on her host."""
    folder = tmp_path / "project" / "secrets" / "ssh"
    folder.mkdir(parents=True)
    (folder / "id_ed25519.pub").write_text(text)


def _knows_nothing(_: str) -> object:
    return {"public_key": ATTACKERS, "fingerprint": "x", "hive_id": "here", "workers": []}


def _passes_on(part: str, name: str) -> Callable[[str], object]:
    """A relay: it has the proof from the real service, and adds its own."""

    def answer(target: str) -> object:
        nonce = target.partition("nonce=")[2]
        return {"name": name, "proof": proof_of(TOKEN, part, name, nonce), "public_key": ATTACKERS, "workers": []}

    return answer


@pytest.mark.parametrize("answer", [_knows_nothing, _passes_on("queen", "queen")], ids=["squatter", "relay"])
async def test_a_stranger_on_the_queens_port_gets_no_token_and_plants_no_key(
    play: Play, tmp_path: Path, answer: Callable[[str], object]
):
    a_key(tmp_path, KEY + "\n")
    async with squatting(answer) as squatter:
        status, said = await play("queen", "answers", _port(squatter.url), main_pid=1)
    assert status == 2 and "[queen_not_answering]" in said, said
    assert squatter.requests and TOKEN.encode() not in squatter.received and TOKEN not in said
    assert not (tmp_path / "secrets" / "ssh").exists()


async def test_the_queens_key_is_that_of_her_file(play: Play, tmp_path: Path):
    a_key(tmp_path, KEY + "\n")
    async with squatting(_passes_on("queen", "queen")) as queen:
        status, said = await play("queen", "answers", _port(queen.url))
    assert status == 0, said
    assert (tmp_path / "secrets" / "ssh" / "id_ed25519.pub").read_text() == KEY + "\n"
    assert TOKEN.encode() not in queen.received, "not even the queen needs to be sent it"


@pytest.mark.parametrize(
    "text", [f"{KEY}\n{ATTACKERS}\n", f'command="sh" {KEY}\n', "-----BEGIN OPENSSH PRIVATE KEY-----\n"]
)
async def test_what_is_no_public_key_is_authorised_nowhere(play: Play, tmp_path: Path, text: str):
    a_key(tmp_path, text)
    async with squatting(_passes_on("queen", "queen")) as queen:
        status, said = await play("queen", "answers", _port(queen.url))
    assert status == 2 and "[queen_key_unusable]" in said, said
    (tmp_path / "secrets" / "ssh").mkdir(exist_ok=True)
    (tmp_path / "secrets" / "ssh" / "id_ed25519.pub").write_text(text)
    status, said = await play("hive", "queen_key", 1)
    assert status == 2 and "[queen_key_unusable]" in said, said
    assert not (tmp_path / "home" / ".ssh").exists()


@pytest.mark.parametrize("answer", [_knows_nothing, _passes_on("hive", "here")], ids=["squatter", "relay"])
async def test_a_stranger_on_a_hives_port_gets_no_token(play: Play, answer: Callable[[str], object]):
    async with squatting(answer) as squatter:
        status, said = await play("hive", "answers", _port(squatter.url), main_pid=1)
        assert status == 2 and "[hive_not_answering]" in said, said
        status, said = await play("hive", "workers", _port(squatter.url), main_pid=1, hive_workers=[])
        assert status == 2 and "No token was sent" in said, said
    assert squatter.requests and TOKEN.encode() not in squatter.received


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
