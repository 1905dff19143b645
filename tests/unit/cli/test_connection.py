from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llama_orch import __version__
from llama_orch.base import processes
from llama_orch.cli.connection import Connection, LocalUp, Unusable, find_local_up, inference_token, read_token
from llama_orch.contract.common import WorkerCounts
from llama_orch.contract.queen import NodeHive
from tests.unit.cli.conftest import Command
from tests.unit.cli.services import INFERENCE_TOKEN, TOKEN, Fleet

NOTHING: dict[str, str | None] = dict.fromkeys(
    ("LLAMA_ORCH_QUEEN_URL", "LLAMA_ORCH_HIVE_URL", "LLAMA_ORCH_TOKEN_FILE", "LLAMA_ORCH_INFERENCE_TOKEN_FILE")
)


def announce(folder: Path, secrets: Path, fleet: Fleet | None = None, **fields: object) -> None:
    told = {
        "pid": os.getpid(),
        "start_time": processes.start_time(os.getpid()),
        "boot_id": processes.boot_id(),
        "queen_url": fleet.urls["queen"] if fleet else "http://127.0.0.1:1",
        "hive_url": fleet.urls["hive"] if fleet else "http://127.0.0.1:2",
        "api_token_file": secrets / "api-token",
        "inference_token_file": secrets / "inference-token",
        "secrets_dir": secrets,
    }
    folder.mkdir(exist_ok=True)
    (folder / "connection.json").write_text(LocalUp.model_validate(told | fields).model_dump_json())


async def test_a_running_up_is_found_from_a_folder_below(
    fleet: Fleet, secrets: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    announce(tmp_path / ".llama-orch", secrets, fleet)
    below = tmp_path / "docs" / "deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    fleet.add_node("n1")
    assert "n1" in (await command("nodes", "list", env=NOTHING)).stdout
    assert (await command("workers", "list", env=NOTHING)).exit_code == 0


@pytest.mark.parametrize("fields", [{"start_time": 1}, {"boot_id": "another"}, {"pid": 2**22 + 1}])
def test_an_up_that_is_gone_is_not_believed(fields: dict[str, Any], secrets: Path, elsewhere: Path):
    announce(elsewhere / ".llama-orch", secrets)
    assert find_local_up() is not None
    announce(elsewhere / ".llama-orch", secrets, **fields)
    assert find_local_up() is None


def test_a_file_that_is_nonsense_is_not_believed(elsewhere: Path):
    (elsewhere / ".llama-orch").mkdir()
    (elsewhere / ".llama-orch" / "connection.json").write_text('{"pid": ')
    assert find_local_up() is None


async def test_a_node_is_resolved_by_the_queen_with_its_own_token(fleet: Fleet, command: Command):
    told = NodeHive(
        hive_id="n1", version="0.1.0", url=fleet.urls["hive"], workers=WorkerCounts(total=0, idle=0, busy=0)
    )
    fleet.add_node("n1", status="active", hive=told)
    fleet.add_node("n2")
    assert (await command("devices", "--hive", "n1")).exit_code == 0
    unknown = await command("devices", "--hive", "n3")
    assert unknown.exit_code == 1 and "there is no node n3" in unknown.stderr
    early = await command("devices", "--hive", "n2")
    assert early.exit_code == 2 and "llama-orch nodes provision n2" in early.stderr
    assert (await command("devices", "--hive", "N 1")).exit_code == 2


async def test_a_machines_own_token_is_not_sent_elsewhere(elsewhere: Path):
    (elsewhere / "etc").mkdir()
    (elsewhere / "etc" / "api-token").write_text(TOKEN)
    (elsewhere / "etc" / "api-token").chmod(0o600)
    assert Connection(queen="http://[::1]:8080").open_queen().url == "http://[::1]:8080"
    with pytest.raises(Unusable, match=r"no token for http://192\.0\.2\.1:8080: give --token-file"):
        Connection(queen="http://192.0.2.1:8080").open_queen()


def test_the_token_of_an_up_goes_to_its_services_alone(secrets: Path, elsewhere: Path):
    announce(elsewhere / ".llama-orch", secrets)
    assert Connection().open_queen().url == "http://127.0.0.1:1"
    with pytest.raises(Unusable, match="no token"):
        Connection(queen="http://192.0.2.1:8080").open_queen()


@pytest.mark.parametrize("url", ["queen", "ftp://queen", "http://", "queen:8080"])
def test_an_address_must_be_one(url: str, elsewhere: Path):
    with pytest.raises(Unusable, match="--queen"):
        Connection(queen=url).open_queen()


def test_token_files_say_what_is_wrong(tmp_path: Path):
    file = tmp_path / "token"
    with pytest.raises(Unusable, match="No such file"):
        read_token(file)
    file.write_text(TOKEN)
    file.chmod(0o640)
    with pytest.raises(Unusable, match="chmod 600"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file) == TOKEN
    for content in (b"", b"two words", b"\xff", b"too-short"):
        file.write_bytes(content)
        with pytest.raises(Unusable):
            read_token(file)


def test_a_hive_has_an_inference_token_of_its_own(elsewhere: Path, secrets: Path):
    assert inference_token(None, "n1") == inference_token(None) == INFERENCE_TOKEN
    (secrets / "inference").mkdir()
    (secrets / "inference" / "n1").touch(0o600)
    (secrets / "inference" / "n1").write_text("the-token-of-this-one-hive")
    assert inference_token(None, "n1") == "the-token-of-this-one-hive"
    for other in ("n2", None, "http://n1:8081", "../n1"):
        assert inference_token(None, other) == INFERENCE_TOKEN
    assert inference_token(secrets / "inference-token", "n1") == INFERENCE_TOKEN


async def test_nobody_there_says_what_to_start(command: Command):
    result = await command("nodes", "list", "--queen", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "Connection refused" in result.stderr and "llama-orch up" in result.stderr


async def test_a_wrong_token_says_so(command: Command, tmp_path: Path):
    (tmp_path / "other").write_text("another-token-of-enough-length")
    (tmp_path / "other").chmod(0o600)
    result = await command("nodes", "list", "--token-file", str(tmp_path / "other"))
    assert result.exit_code == 1 and "--token-file" in result.stderr


@pytest.mark.parametrize("arguments", [("version",), ("--version",)])
async def test_version(command: Command, arguments: tuple[str, ...]):
    assert (await command(*arguments)).stdout == f"llama-orch {__version__}\n"
