from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llama_orch.queen.inventory import view as module
from llama_orch.queen.inventory.registered_file import RegisteredHost
from llama_orch.queen.inventory.shape import BrokenInventory, check_shape
from llama_orch.queen.inventory.view import Inventory


def an_inventory(folder: Path) -> Inventory:
    (folder / "inventory").mkdir(exist_ok=True)
    return Inventory(
        folder / "inventory",
        cache=folder / "view.json",
        environment={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)},
        cwd=folder,
        user="me",
        hive_port=8081,
    )


async def test_the_merged_truth_is_ansibles(tmp_path: Path):
    inventory = an_inventory(tmp_path)
    registered = RegisteredHost("both", "10.0.0.1", 22, "llama-orch", "/k", {"a": "b"})
    await inventory.register(registered)
    await inventory.register(RegisteredHost("rest", "10.0.0.2", 2022, "llama-orch", "/k"))
    files = tmp_path / "inventory"
    (files / "group_vars").mkdir()
    (files / "group_vars" / "hives.yml").write_text("hive_port: 9000\n")
    (files / "hosts.yml").write_text(
        "all:\n  children:\n    hives:\n      children:\n        gpu:\n          hosts:\n"
        "            both: {ansible_host: 10.9.9.9}\n            gpu[1:2]: {hive_address: 1.2.3.4}\n"
        "    queen:\n      hosts:\n        control:\n"
    )
    assert await inventory.refresh()
    assert inventory.problem is None and sorted(inventory.hosts) == ["both", "gpu1", "gpu2", "rest"]
    both, gpu, rest = (inventory.hosts[name] for name in ("both", "gpu1", "rest"))
    assert (both.source, both.ssh_host, both.ssh_user, both.labels) == (
        "inventory",
        "10.9.9.9",
        "llama-orch",
        {"a": "b"},
    )
    assert (gpu.ssh_host, gpu.ssh_user, gpu.hive_address, gpu.hive_port) == ("gpu1", "me", "1.2.3.4", 9000)
    assert (rest.source, rest.ssh_port, rest.hive_address, rest.hive_port) == ("rest", 2022, "10.0.0.2", 9000)
    assert {"hives", "gpu", "queen"} <= inventory.groups
    assert inventory.file_of("both") == "hosts.yml"

    again = an_inventory(tmp_path)
    await again.load()
    assert again.hosts == inventory.hosts and not await again.refresh()


async def test_a_broken_file_keeps_the_last_good_view_also_in_the_next_process(tmp_path: Path):
    inventory = an_inventory(tmp_path)
    hosts = tmp_path / "inventory" / "hosts.yml"
    hosts.write_text("all:\n  children:\n    hives:\n      hosts:\n        one:\n")
    await inventory.refresh()
    unbalanced = 'all:\n  children:\n    hives:\n      hosts:\n        two: {ansible_ssh_common_args: "-o \'x"}\n'
    for text, said in (
        ("all: [\n", "hosts.yml"),
        ("all:\n  children:\n    hives:\n      hots:\n        two:\n", "hosts.yml"),
        ("all:\n\thosts:\n", "hosts.yml"),
        ("all: {vars: {since: 2026-13-45}}\n", "hosts.yml"),
        (unbalanced, "ansible_ssh_common_args of two: no closing quotation"),
    ):
        hosts.write_text(text)
        await inventory.refresh()
        assert list(inventory.hosts) == ["one"]
        assert inventory.problem is not None and said in inventory.problem.message
        assert str(tmp_path) not in inventory.problem.message
        again = an_inventory(tmp_path)
        await again.load()
        assert list(again.hosts) == ["one"] and again.problem is not None
    hosts.write_text("all:\n  children:\n    hives:\n      hosts:\n        two:\n")
    await inventory.refresh()
    assert list(inventory.hosts) == ["two"] and inventory.problem is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo nonsense", "no JSON"),
        ('printf \'{"hives": {"hosts": ["a\'', "no JSON"),
        ("echo '[]'", "no inventory"),
        ("echo '{}'", "no inventory"),
        ('echo \'{"_meta": {"hostvars": []}}\'', "no inventory"),
        ('echo \'{"_meta": {"hostvars": {"a": 5}}}\'', "no inventory"),
        ('echo \'{"_meta": {"hostvars": {}}, "hives": {"hosts": 5}}\'', "cannot be worked on"),
        ("head -c 100000 /dev/zero | tr '\\0' '['", "no JSON"),
        ("head -c 3000 /dev/zero", "more than 0 MiB"),
        ("printf '\\xff'", "no JSON"),
        ("sleep 600 & echo x", "no JSON"),
        ("exec >&-; sleep 600", "did not answer within 1 s"),
        ("echo oh dear >&2; exit 3", "oh dear"),
    ],
)
async def test_whatever_ansible_says_the_last_good_view_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
):
    monkeypatch.setattr(module, "QUESTION_TIMEOUT_S", 1.0 if "did not answer" in words else 60.0)
    monkeypatch.setattr(module, "MOST_ANSWER", 1000 if "more than" in words else 2**20)
    await an_inventory(tmp_path).register(RegisteredHost("one", "10.0.0.1", 22, "u", "/k"))
    program = tmp_path / "ansible-inventory"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    inventory = Inventory(
        tmp_path / "inventory", cache=tmp_path / "view.json", cwd=tmp_path, user="me", hive_port=8081,
        environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    await inventory.load()
    assert inventory.problem is not None and words in inventory.problem.message
    assert list(inventory.hosts) == ["one"]


async def test_registering_shows_at_once_and_unregistering_too(tmp_path: Path):
    inventory = an_inventory(tmp_path)
    await inventory.load()
    await inventory.register(RegisteredHost("new", "10.0.0.1", 22, "u", "/k"))
    assert inventory.hosts["new"].source == "rest"
    await inventory.refresh()
    await inventory.unregister("new")
    assert inventory.hosts == {}
    await inventory.register(RegisteredHost("new", "10.0.0.7", 22, "u", "/k"))
    assert inventory.hosts["new"].ssh_host == "10.0.0.7"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hives:\n  hosts: [a, b]\n", "'hosts' of the group 'hives' must be a mapping"),
        ("hives:\n  host:\n    a:\n", "'host' in the group 'hives'"),
        ("all:\n  children:\n    hives:\n      hosts:\n      a:\n", "'a' in the group 'hives'"),
        ("hives: [a]\n", "the group 'hives' must hold"),
    ],
)
def test_what_ansible_only_warns_of_is_an_error(tmp_path: Path, text: str, words: str):
    path = tmp_path / "hosts.yml"
    path.write_text(text)
    with pytest.raises(BrokenInventory, match=words):
        check_shape([path])


@pytest.mark.parametrize("text", ["", "---\n", "all:\n", "all:\n  hosts:\n    a:\n", "plugin: x\nfoo: 1\n"])
def test_what_is_right_passes(tmp_path: Path, text: str):
    path = tmp_path / "hosts.yml"
    path.write_text(text)
    check_shape([path])
