"""What a disk without room leaves of the queen's files: the old ones, and nothing beside them."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llama_orch.base.tokens import make_token_file
from llama_orch.cli import home_files
from llama_orch.queen.ansible.ssh_keys import KnownHosts, RecordedKey, ensure_key_pair, public_key
from llama_orch.queen.fleet.hive_tokens import HiveTokens
from llama_orch.queen.inventory.registered_file import NAME, RegisteredFile, RegisteredHost
from llama_orch.queen.inventory.view import Host, Inventory
from llama_orch.queen.jobs import executor_lock
from llama_orch.queen.queen import Queen

BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIGvFjzuYf0XnC1AQYDSyaEcZ10KTmEYBxkDq6ofBkmdH"


@contextlib.contextmanager
def no_room(most_bytes: int = 3) -> Iterator[None]:
    """No file gets longer than this, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def a_host(name: str) -> RegisteredHost:
    return RegisteredHost(name, "10.0.0.1", 22, "u", "/k")


def record(folder: Path) -> None:
    KnownHosts(folder / "known_hosts").add([RecordedKey("h", "ssh-ed25519", BLOB, "")], confirmed=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: RegisteredFile(folder).add(a_host("new")),
        record,
        lambda folder: HiveTokens(folder).give_to("n1", "SHA256:one"),
        lambda folder: make_token_file(folder / "api-token"),
        lambda folder: home_files.write(folder / "queen.toml", "a text"),
    ],
    ids=["inventory", "known hosts", "token's note", "token", "settings"],
)
def test_a_full_disk_leaves_nothing_beside_the_file(tmp_path: Path, write: Callable[[Path], object]):
    RegisteredFile(tmp_path).add(a_host("old"))
    (tmp_path / "hives").mkdir()
    (tmp_path / "hives" / "n1").touch(0o600)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with no_room(), pytest.raises(OSError, match="File too large"):
        write(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    write(tmp_path)


def test_an_inventory_whose_view_cannot_be_kept_is_not_broken(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    inventory = Inventory(
        tmp_path, cache=tmp_path / "view.json", environment={}, cwd=tmp_path, user="u", hive_port=8081
    )
    inventory._merged = {"n": Host("n", "n", 22, "u", {}, "inventory", "n", 8081)}  # pyright: ignore[reportPrivateUsage]
    with no_room():
        inventory._write_cache()  # pyright: ignore[reportPrivateUsage]
    assert "cannot be kept" in caplog.text and list(tmp_path.iterdir()) == []
    inventory._write_cache()  # pyright: ignore[reportPrivateUsage]
    assert json.loads((tmp_path / "view.json").read_text())["hosts"][0]["name"] == "n"


def test_a_queen_holds_her_folder_though_its_disk_is_full(tmp_path: Path):
    with no_room(0), executor_lock.hold(tmp_path), pytest.raises(executor_lock.AnotherQueen):
        executor_lock.hold(tmp_path)


@pytest.mark.parametrize("left", ["", "ssh-ed", "ssh-ed25519 AAAA* x\n", "\xff"])
def test_a_public_key_that_was_half_written_is_made_again(tmp_path: Path, left: str):
    private = tmp_path / "id_ed25519"
    ensure_key_pair(private)
    key = public_key(private)
    private.with_suffix(".pub").write_bytes(left.encode("latin-1"))
    ensure_key_pair(private)
    assert public_key(private).fingerprint == key.fingerprint


def test_a_start_deletes_what_was_left_and_nothing_else(tmp_path: Path):
    data, inventory, secrets = (tmp_path / name for name in ("data", "inventory", "secrets"))
    left = [
        *(data / name for name in (".known_hosts.tmp", ".inventory-view.json.tmp", ".keys-x1/keys")),
        inventory / f".{NAME}.tmp",
        secrets / "hives/..n1.host-key.tmp",
        *(secrets / "ssh" / name for name in (".making-x1/key", ".id_ed25519.pub.tmp")),
    ]
    theirs = [
        *(data / name for name in ("known_hosts", "queen.sqlite", "notes.tmp")),
        *(inventory / name for name in (NAME, f".{NAME}.lock", ".hosts.yml.tmp", ".git/index.tmp")),
        *(secrets / name for name in ("api-token", ".api-token.tmp", "hives/n1", "hives/.n1.host-key")),
        secrets / "ssh/id_ed25519",
    ]
    for path in (*left, *theirs):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    settings = SimpleNamespace(data=data, inventory=inventory, secrets=secrets, ssh_key=secrets / "ssh/id_ed25519")
    queen = cast("Any", SimpleNamespace(_settings=settings))
    for _ in range(2):
        Queen._sweep(queen)  # pyright: ignore[reportPrivateUsage]
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(theirs)
        assert not (data / ".keys-x1").exists() and not (secrets / "ssh/.making-x1").exists()
