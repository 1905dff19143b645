from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llama_orch.queen.inventory.registered_file import (
    NAME,
    AlreadyRegistered,
    BrokenFile,
    RegisteredFile,
    RegisteredHost,
    parse,
    render,
)

# What YAML 1.1, which Ansible reads, would take for something else.
NASTY = ["yes", "no", "on", "off", "true", "null", "0755", "12", "1e3", "0x1f", "y", "n", "1-2", "2026-01-01"]


def a_host(name: str, **more: object) -> RegisteredHost:
    values = {"ssh_host": "10.0.0.1", "ssh_port": 22, "ssh_user": "llama-orch", "key_file": "/k"} | more
    return RegisteredHost(name=name, **values)  # pyright: ignore[reportArgumentType]


def test_nasty_strings_stay_strings_for_ansible_too(tmp_path: Path):
    labels = dict.fromkeys(NASTY, "12.30") | {"time": "0755", "big": "1e9"}
    hosts = {name: a_host(name, ssh_host=name, ssh_user="on", labels=labels) for name in NASTY}
    file = RegisteredFile(tmp_path)
    for host in hosts.values():
        file.add(host)
    assert file.read() == hosts
    program = Path(sys.executable).with_name("ansible-inventory")
    shown = subprocess.run([program, "-i", tmp_path / NAME, "--list"], capture_output=True, text=True, check=True)
    answer = json.loads(shown.stdout)
    assert sorted(answer["hives"]["hosts"]) == sorted(NASTY)
    for name in NASTY:
        variables = answer["_meta"]["hostvars"][name]
        assert (variables["ansible_host"], variables["ansible_user"]) == (name, "on")
        assert variables["ansible_port"] == 22 and variables["llama_orch_labels"] == labels


def test_it_is_written_whole_for_all_to_read_and_says_whose_it_is(tmp_path: Path):
    file = RegisteredFile(tmp_path)
    file.add(a_host("one"))
    assert file.path.read_text().startswith("# Written by the queen")
    assert file.path.stat().st_mode & 0o777 == 0o644
    assert {path.name for path in tmp_path.iterdir()} == {NAME, f".{NAME}.lock"}


def test_adding_twice_is_refused_and_removing_twice_is_not(tmp_path: Path):
    file = RegisteredFile(tmp_path)
    file.add(a_host("one"))
    with pytest.raises(AlreadyRegistered):
        file.add(a_host("one", ssh_host="10.9.9.9"))
    assert file.read()["one"].ssh_host == "10.0.0.1"
    file.remove("one")
    file.remove("one")
    assert file.read() == {} and parse(file.path.read_text()) == {}


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path):
    names = [f"n{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: RegisteredFile(tmp_path).add(a_host(name)), names))
    assert sorted(RegisteredFile(tmp_path).read()) == sorted(names)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# as a full disk leaves it\n",
        "all:\n",
        "all: {children: {hives: {hosts: {one: {ansible_host: 2026-13-45}}}}}\n",
        "[" * 5000,
        "all: [",
        "- a\n",
        "all: 5\n",
        "all:\n  children:\n    hives:\n      hosts:\n        yes:\n          ansible_host: x\n",
        render({"one": a_host("one")}).replace('"10.0.0.1"', "\"{{ lookup('pipe', 'id') }}\""),
        render({"one": a_host("one")}).replace("ansible_user", "ansible_users"),
    ],
)
def test_an_edited_file_is_refused_and_left_alone(tmp_path: Path, text: str):
    file = RegisteredFile(tmp_path)
    file.path.write_text(text)
    with pytest.raises(BrokenFile, match=NAME):
        file.add(a_host("two"))
    assert file.path.read_text() == text


def test_a_half_written_temporary_file_harms_nothing(tmp_path: Path):
    file = RegisteredFile(tmp_path)
    file.add(a_host("one"))
    (tmp_path / f".{NAME}.tmp").write_text("all: [")
    file.add(a_host("two"))
    assert sorted(file.read()) == ["one", "two"]


def test_a_host_key_is_kept_with_the_node(tmp_path: Path):
    file = RegisteredFile(tmp_path)
    file.add(a_host("one"))
    file.add(a_host("two", host_key="SHA256:" + "A" * 43))
    file.expect_host_key("one", "SHA256:" + "B" * 43)
    file.expect_host_key("none", "SHA256:" + "C" * 43)
    assert {name: host.host_key[7] for name, host in file.read().items()} == {"one": "B", "two": "A"}
    assert "llama_orch_host_key" not in render({"three": a_host("three")})
    file.path.write_text(file.path.read_text().replace("SHA256:" + "B" * 43, "{{ 1 }}"))
    with pytest.raises(BrokenFile):
        file.read()
