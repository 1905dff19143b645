"""What is compiled for which hosts: asked by the playbook itself, of hosts whose buses are folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_orch.wheelhouse import cuda_fleet, fleet
from llama_orch.wheelhouse.__main__ import main
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.fleet import Host, Library
from tests.unit.wheelhouse.nvcc import fake_nvcc

ROOT = Path(__file__).parents[3]
GPU = {"compute": "8.6", "label": "0000:01:00.0 (10de:2204, Ampere)"}
FOUND: dict[str, Any] = {"arch": "x86_64", "gpus": [GPU], "one_driver": True, "hive_cuda": "auto"}
# The host's Python: gives what it is to run the bus in the folder of its first argument.
PYTHON3 = """#!{python}
import sys
script = sys.stdin.read().replace("/sys/bus/pci/devices", sys.argv[2] + "/pci")
sys.argv[:] = sys.argv[1:]
exec(script)
"""


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The variables of hosts by name, as they will stand in the inventory that Ansible reads."""
    hosts: dict[str, Any] = {}
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "python3": PYTHON3.format(python=sys.executable),
        "ssh": "#!/bin/sh\necho gone >&2\nexit 255\n",
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("ANSIBLE_INVENTORY", str(tmp_path / "hosts.yml"))
    monkeypatch.setenv("ANSIBLE_SSH_RETRIES", "0")
    return hosts


def host(folder: Path, *devices: str, **variables: Any) -> dict[str, Any]:
    """A host with GPUs of these PCI device ids."""
    for index, device in enumerate(devices):
        slot = folder / "pci" / f"0000:0{index + 1}:00.0"
        slot.mkdir(parents=True)
        for name, value in {"vendor": "0x10de", "device": f"0x{device}", "class": "0x030200"}.items():
            (slot / name).write_text(value)
    folder.mkdir(exist_ok=True)
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    return {**local, "preflight_disk_needs": {str(folder): 1}, **variables}


def write(folder: Path, hosts: dict[str, Any]) -> None:
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": {"hives": {"hosts": hosts}}}}))


def test_hosts_are_asked_and_those_that_do_not_answer_are_named(tmp_path: Path, inventory: dict[str, Any]) -> None:
    inventory["one"] = host(tmp_path / "one", "2204", "2236")
    inventory["two"] = host(tmp_path / "two", "2684", "2204")
    inventory["old"] = host(tmp_path / "old", "1b06", "2204")
    inventory["none"] = host(tmp_path / "none")
    inventory["other"] = host(tmp_path / "other", "1b06", "2b85")
    inventory["newer"] = host(tmp_path / "newer", "3000")
    inventory["cpu"] = host(tmp_path / "cpu", "2204", hive_cuda=False)
    inventory["gone"] = {"ansible_host": "gone.example.com", "ansible_ssh_executable": str(tmp_path / "bin" / "ssh")}
    write(tmp_path, inventory)

    found = {one.name: one for one in fleet.ask(ROOT)}

    assert {name: one.capabilities for name, one in found.items() if not one.reason} == {
        "one": (86,),
        "two": (86, 89),
        "old": (61, 86),
    }
    assert {name: one.reason for name, one in found.items() if one.reason} == {
        "none": "no NVIDIA GPU",
        "other": "no one driver drives all of 0000:01:00.0 (10de:1b06, Pascal), 0000:02:00.0 (10de:2b85, Blackwell)",
        "newer": "0000:01:00.0 (10de:3000, not in the table): name its compute capability with --architectures",
        "cpu": "hive_cuda is false",
        "gone": "Failed to connect to the host via ssh: gone",
    }


def test_where_no_host_answers_all_are_named(
    tmp_path: Path, inventory: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    ssh = {"ansible_host": "gone.example.com", "ansible_ssh_executable": str(tmp_path / "bin" / "ssh")}
    write(tmp_path, {"one": ssh, "two": ssh})

    status = main(["build-cuda", f"--cache={tmp_path}", f"--out={tmp_path / 'out'}"])

    said = capsys.readouterr().err
    assert (status, (tmp_path / "out").exists()) == (1, False)
    assert "left out: one: Failed to connect to the host via ssh: gone\nleft out: two: Failed" in said
    assert 'Mend what is said above, or name what to compile for: `make wheelhouse-cuda CUDA_FLAGS="--arch' in said


def test_an_inventory_that_cannot_be_read_is_shown(
    tmp_path: Path, inventory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hosts.yml").write_text("all: [\n")

    with pytest.raises(WheelhouseError, match=r"could not ask the hosts(.|\n)*hosts\.yml"):
        fleet.ask(ROOT)


def test_without_ansible_the_message_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    with pytest.raises(WheelhouseError, match=r"ansible-playbook is missing.*make wheelhouse-cuda.*--architectures"):
        fleet.ask(ROOT)


def test_an_inventory_without_hives_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fleet, "ask", lambda project: [])

    with pytest.raises(WheelhouseError, match=r"no hives\. Put hosts into inventory/hosts\.yml, or name"):
        cuda_fleet.backends(ROOT, tmp_path, None)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"arch": "aarch64"}, "is aarch64, and wheels are built for x86_64 only"),
        ({"gpus": [{"compute": "3.0", "label": "a K80"}]}, "no CUDA that hives can get has code for a K80"),
        (
            {"gpus": [GPU, {"compute": "3.0", "label": "a K80"}]},
            f"no CUDA that hives can get has code for {GPU['label']}, a K80",
        ),
        ({"hive_cuda": "true", "gpus": []}, "no NVIDIA GPU"),
        ({"problem": "Task failed: Failed\n to connect"}, "Failed to connect"),
    ],
)
def test_a_host_that_nothing_is_compiled_for_says_why(facts: dict[str, Any], reason: str) -> None:
    assert fleet.host("h", {**FOUND, **facts}) == Host("h", reason=reason)


def test_each_set_of_gpus_gets_one_library_by_the_newest_cuda_that_knows_them() -> None:
    hosts = [
        Host("a", (86,)), Host("b", (86, 89)), Host("c", (86,)), Host("d", (61, 86)), Host("e", (61,)),
        Host("f", (120,)), Host("g", reason="gone"),
    ]  # fmt: skip

    assert fleet.libraries(hosts) == [
        Library(13, (86,), ("a", "c")),
        Library(13, (86, 89), ("b",)),
        Library(13, (120,), ("f",)),
        Library(12, (61,), ("e",)),
        Library(12, (61, 86), ("d",)),
    ]
    assert Library(12, (61, 86), ("d",)).architectures() == "61-real;86-real"


def test_a_node_of_another_generation_adds_one_build_and_changes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(*hosts: Host) -> list[str]:
        monkeypatch.setattr(fleet, "ask", lambda project: list(hosts))
        return [one.key() for one in cuda_fleet.backends(ROOT, tmp_path, None)[0]]

    before = keys(Host("a", (86,)))
    after = keys(Host("a", (86,)), Host("b", (89,)), Host("c", (86,)))

    assert (after[:1], len(set(after))) == (before, 2)


def test_what_needs_cuda_12_is_built_by_its_nvcc_and_the_rest_by_nvidias_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fleet, "ask", lambda project: [Host("new", (89,)), Host("old", (61,))])
    nvcc = fake_nvcc(tmp_path, "12.4")

    found, lacking = cuda_fleet.backends(ROOT, tmp_path, nvcc)

    assert [(one.runtime.major, one.nvcc, one.architectures) for one in found] == [
        (13, None, "89-real"),
        (12, nvcc.resolve(), "61-real"),
    ]
    assert lacking == []
    assert "for old: 61-real with CUDA 12.9, about 50 minutes of CPU time" in capsys.readouterr().err


def test_without_that_nvcc_the_others_are_built_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fleet, "ask", lambda project: [Host("new", (89,)), Host("old", (61,)), Host("older", (61,))])

    found, lacking = cuda_fleet.backends(ROOT, tmp_path, None)

    assert [one.architectures for one in found] == ["89-real"]
    assert len(lacking) == 1
    assert lacking[0].startswith("for old, older nothing is compiled: only CUDA 12 has code for 61-real, and NVIDIA's")
    assert 'make wheelhouse-cuda CUDA_FLAGS="--nvcc /usr/local/cuda-12/bin/nvcc"' in lacking[0]
    assert lacking[0] in capsys.readouterr().err


def test_where_all_need_that_nvcc_it_ends_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "ask", lambda project: [Host("old", (61,))])

    with pytest.raises(WheelhouseError, match=r"nothing can be compiled: for old .*--nvcc"):
        cuda_fleet.backends(ROOT, tmp_path, None)
    with pytest.raises(WheelhouseError, match="hives can get CUDA 12 and 13"):
        cuda_fleet.backends(ROOT, tmp_path, fake_nvcc(tmp_path, "11.8"))


def test_check_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fleet, "ask", lambda project: [Host("new", (89,)), Host("old", (61,))])

    status = main(["build-cuda", "--check", f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}"])

    told = capsys.readouterr()
    assert (status, told.out, list(tmp_path.iterdir())) == (0, "", [])
    assert "for new: 89-real with CUDA 13.0, about 50 minutes of CPU time" in told.err
