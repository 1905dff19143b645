"""Which hosts get the CUDA add-on and which are refused: the role's own tasks, run for hosts made of facts alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PREFLIGHT = ROOT / "roles" / "preflight"
LOOKUPS = ROOT / "roles" / "common" / "lookup_plugins"
GPU = {"address": "0000:01:00.0", "device": "2204"}
PASCAL = {"address": "0000:02:00.0", "device": "1b06"}
HOST = {
    "os_id": "debian",
    "os_version": "12",
    "arch": "x86_64",
    "glibc": "2.36",
    "glibcxx": "3.4.30",
    "pythons": [{"series": "3.11", "path": "/usr/bin/python3.11"}],
    "free_bytes": {"/opt": 10_000_000_000},
    "nvidia_gpus": [],
}
# What role nvidia_driver's probe would say: it is not asked here, and this machine may have a driver.
DRIVER = {
    "loaded": "",
    "loaded_flavour": "",
    "library": "",
    "nouveau": False,
    "kernel": "6.1.0-40-amd64",
    "images": [],
    "secure_boot": False,
    "signing_key_enrolled": False,
    "installer": False,
    "module_packages": [],
    "ours": False,
}
BASE: dict[str, Any] = {"glibc": "2.34", "glibcxx": "3.4.30", "files": {"llama_cpp_python-0.3.36-py3-none-any.whl": ""}}
CUDA: dict[str, Any] = {
    "glibc": "2.34",
    "glibcxx": "3.4.30",
    "bytes": 1_000_000_000,
    "installed_bytes": 2_000_000_000,
    "llama_cpp_python": "0.3.36",
    "cuda": {"runtime": "13.0", "least_driver": "580.65.06", "architectures": ["86"], "ptx": []},
}
CUDA_12 = {"runtime": "12.9", "least_driver": "525.60.13", "architectures": ["61"], "ptx": []}
PLAY = """
- hosts: all
  gather_facts: false
  vars_files:
    - {preflight}/defaults/main.yml
    - {preflight}/vars/main.yml
    - {preflight}/../queen/vars/main.yml
    - "{{{{ facts }}}}"
  tasks:
    - block:
        - ansible.builtin.include_tasks: {preflight}/tasks/wheels.yml
        - ansible.builtin.include_tasks: {preflight}/tasks/cuda.yml
        - ansible.builtin.set_fact:
            said: "{{{{ preflight_release_name }}}} {{{{ preflight_addons | length }}}}"
      rescue:
        - ansible.builtin.set_fact:
            said: "{{{{ ansible_failed_result.msg }}}}"
    - ansible.builtin.copy:
        content: "{{{{ dict(hosts | zip(hosts | map('extract', hostvars, 'said'))) | to_json }}}}"
        dest: "{said}"
      run_once: true
      vars: {{hosts: "{{{{ ansible_play_hosts }}}}"}}
    - ansible.builtin.copy:
        content: "{{{{ pushed | map('dirname') | map('basename') | join(' ') | to_json }}}}"
        dest: "{said}.queen"
      run_once: true
      vars:
        queen_wheelhouse_dir: "{{{{ preflight_wheelhouse_dir }}}}"
        pushed: "{{{{ _queen_manifests | map(attribute='path') }}}}"
"""


def wheelhouse(folder: Path, **add_ons: dict[str, Any]) -> str:
    """A wheelhouse of manifests, with the add-ons of which something is said."""
    parts = {"hive-py3.11-x86_64": ("aaaa-py3.11-x86_64", BASE)}
    for name, add_on in add_ons.items():
        parts[f"cuda-x86_64-{name}"] = (f"{name}-cuda-x86_64", {**CUDA, **add_on})
    for link, (name, manifest) in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text(json.dumps({"release": name, **manifest}))
        (folder / name / "wheels.tar").touch()
        (folder / link).symlink_to(name)
    return str(folder)


def with_gpus(*gpus: dict[str, str], **more: Any) -> dict[str, Any]:
    host = {**HOST, "nvidia_gpus": list(gpus), **more}
    return {"preflight_host": host, "nvidia_driver_host": {**host, **DRIVER}}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the role says of each host: the release and how many add-ons it gets, or why it is refused."""
    folder = tmp_path_factory.mktemp("preflight")
    whole = wheelhouse(folder / "whole", bbbb={}, cccc={"cuda": CUDA_12}, dddd={"llama_cpp_python": "0.3.35"})
    none = wheelhouse(folder / "none")
    (folder / "whole" / "half-cuda-x86_64").mkdir()
    (folder / "whole" / "half-cuda-x86_64" / "manifest.json").write_text("{}")
    (folder / "whole" / "cuda-x86_64-half").symlink_to("half-cuda-x86_64")
    hosts: dict[str, dict[str, Any]] = {
        "bare": {},
        "bare-and-no-add-on": {"preflight_wheelhouse_dir": none},
        "gpu": with_gpus(GPU),
        "old-gpu": with_gpus(PASCAL),
        "two-gpus": with_gpus(GPU, PASCAL),
        "gpu-and-no-add-on": {**with_gpus(GPU), "preflight_wheelhouse_dir": none},
        "gpu-on-the-cpu": {**with_gpus(GPU), "preflight_wheelhouse_dir": none, "preflight_cuda": False},
        "bare-with-cuda": {"preflight_cuda": True},
        "queen": {**with_gpus(GPU), "preflight_part": "queen"},
        "small-disk": with_gpus(GPU, free_bytes={"/opt": 5_000_000_000}),
        "old-add-on": {
            **with_gpus(GPU),
            "preflight_wheelhouse_dir": wheelhouse(folder / "old", bbbb={"llama_cpp_python": "0.3.35"}),
        },
        "old-system": {
            **with_gpus(GPU),
            "preflight_wheelhouse_dir": wheelhouse(folder / "new", bbbb={"glibc": "2.38"}),
        },
    }
    (folder / "whole" / "queen-py3.11-x86_64").symlink_to("aaaa-py3.11-x86_64")
    inventory: dict[str, Any] = {}
    for name, facts in hosts.items():
        (folder / f"{name}.yml").write_text(
            yaml.safe_dump({"preflight_host": HOST, "preflight_wheelhouse_dir": whole, **facts})
        )
        inventory[name] = {"facts": str(folder / f"{name}.yml")}
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": inventory, "vars": local}}))
    said = folder / "said"
    (folder / "play.yml").write_text(PLAY.format(preflight=PREFLIGHT, said=said))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", folder / "hosts.yml", folder / "play.yml"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "ANSIBLE_FORKS": "2",
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            "ANSIBLE_LOOKUP_PLUGINS": str(LOOKUPS),
            "ANSIBLE_FILTER_PLUGINS": str(LOOKUPS.with_name("filter_plugins")),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    told = json.loads(said.read_text())
    told["what a queen gets"] = json.loads(said.with_suffix(".queen").read_text())
    return {host: " ".join(text.split()) for host, text in told.items()}


@pytest.mark.parametrize(("host", "add_on"), [("gpu", "bbbb"), ("old-gpu", "cccc"), ("bare-with-cuda", "bbbb")])
def test_a_host_with_a_gpu_gets_a_release_of_both(answers: dict[str, str], host: str, add_on: str) -> None:
    assert answers[host] == f"aaaa-py3.11-x86_64-{add_on}-cuda-x86_64 1"


@pytest.mark.parametrize("host", ["bare", "bare-and-no-add-on", "gpu-on-the-cpu", "queen"])
def test_other_hosts_get_the_release_alone(answers: dict[str, str], host: str) -> None:
    assert answers[host] == "aaaa-py3.11-x86_64 0"


@pytest.mark.parametrize(
    ("host", "code", "words"),
    [
        ("gpu-and-no-add-on", "no_cuda_wheels", ["0000:01:00.0", "make wheelhouse-cuda", "hive_cuda: false"]),
        (
            "two-gpus",
            "gpu_not_in_wheels",
            ["86 with CUDA 13.0; 61 with CUDA 12.9", '"--architectures 61-real;86-real"'],
        ),
        ("small-disk", "disk_full", ["5000000000", "5073741824"]),
        ("old-add-on", "cuda_wheels_outdated", ["0.3.35", "make wheelhouse wheelhouse-cuda"]),
        ("old-system", "glibc_too_old", ["2.36", "2.38"]),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(
    answers: dict[str, str], host: str, code: str, words: list[str]
) -> None:
    assert re.match(rf"\[{code}\] {host}[ :]", answers[host])
    assert all(word in answers[host] for word in words), answers[host]


def test_a_queen_gets_all_that_are_whole(answers: dict[str, str]) -> None:
    assert answers["what a queen gets"].split()[4:] == [f"cuda-x86_64-{name}" for name in ("bbbb", "cccc", "dddd")]
