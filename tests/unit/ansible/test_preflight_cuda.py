"""Which hosts get the CUDA add-on and which are refused: the role's own tasks, run for hosts made of facts alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
PREFLIGHT = ROOT / "roles" / "preflight"
GPU = {"address": "0000:01:00.0", "device": "2204"}
HOST = {
    "arch": "x86_64",
    "glibc": "2.36",
    "glibcxx": "3.4.30",
    "pythons": [{"series": "3.11", "path": "/usr/bin/python3.11"}],
    "free_bytes": {"/opt": 10_000_000_000},
    "nvidia_gpus": [],
}
BASE: dict[str, Any] = {"glibc": "2.34", "glibcxx": "3.4.30", "files": {"llama_cpp_python-0.3.36-py3-none-any.whl": ""}}
CUDA: dict[str, Any] = {
    "glibc": "2.34",
    "glibcxx": "3.4.30",
    "bytes": 1_000_000_000,
    "installed_bytes": 2_000_000_000,
    "llama_cpp_python": "0.3.36",
    "cuda": {"runtime": "13.0", "least_driver": "580.65.06"},
}
PLAY = """
- hosts: all
  gather_facts: false
  vars_files: [{preflight}/defaults/main.yml, {preflight}/vars/main.yml, "{{{{ facts }}}}"]
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
"""


def wheelhouse(folder: Path, **add_on: Any) -> str:
    """A wheelhouse of manifests, with the add-on where something is said of it."""
    parts = {"hive-py3.11-x86_64": ("aaaa-py3.11-x86_64", BASE)}
    if add_on:
        parts["cuda-x86_64"] = ("bbbb-cuda-x86_64", {**CUDA, **add_on})
    for link, (name, manifest) in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text(json.dumps({"release": name, **manifest}))
        (folder / name / "wheels.tar").touch()
        (folder / link).symlink_to(name)
    return str(folder)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the role says of each host: the release and how many add-ons it gets, or why it is refused."""
    folder = tmp_path_factory.mktemp("preflight")
    whole, none = wheelhouse(folder / "whole", bytes=1_000_000_000), wheelhouse(folder / "none")
    hosts: dict[str, dict[str, Any]] = {
        "bare": {},
        "bare-and-no-add-on": {"preflight_wheelhouse_dir": none},
        "gpu": {"preflight_host": {**HOST, "nvidia_gpus": [GPU]}},
        "gpu-and-no-add-on": {"preflight_host": {**HOST, "nvidia_gpus": [GPU]}, "preflight_wheelhouse_dir": none},
        "gpu-on-the-cpu": {
            "preflight_host": {**HOST, "nvidia_gpus": [GPU]},
            "preflight_wheelhouse_dir": none,
            "preflight_cuda": False,
        },
        "bare-with-cuda": {"preflight_cuda": True},
        "queen": {"preflight_host": {**HOST, "nvidia_gpus": [GPU]}, "preflight_part": "queen"},
        "small-disk": {"preflight_host": {**HOST, "nvidia_gpus": [GPU], "free_bytes": {"/opt": 5_000_000_000}}},
        "old-add-on": {
            "preflight_host": {**HOST, "nvidia_gpus": [GPU]},
            "preflight_wheelhouse_dir": wheelhouse(folder / "old", llama_cpp_python="0.3.35"),
        },
        "old-system": {
            "preflight_host": {**HOST, "nvidia_gpus": [GPU]},
            "preflight_wheelhouse_dir": wheelhouse(folder / "new", glibc="2.38"),
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
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "ANSIBLE_FORKS": "2", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return {host: " ".join(text.split()) for host, text in json.loads(said.read_text()).items()}


@pytest.mark.parametrize("host", ["gpu", "bare-with-cuda"])
def test_a_host_with_a_gpu_gets_a_release_of_both(answers: dict[str, str], host: str) -> None:
    assert answers[host] == "aaaa-py3.11-x86_64-bbbb-cuda-x86_64 1"


@pytest.mark.parametrize("host", ["bare", "bare-and-no-add-on", "gpu-on-the-cpu", "queen"])
def test_other_hosts_get_the_release_alone(answers: dict[str, str], host: str) -> None:
    assert answers[host] == "aaaa-py3.11-x86_64 0"


@pytest.mark.parametrize(
    ("host", "code", "words"),
    [
        ("gpu-and-no-add-on", "no_cuda_wheels", ["0000:01:00.0", "make wheelhouse-cuda", "hive_cuda: false"]),
        ("small-disk", "disk_full", ["5000000000", "5073741824"]),
        ("old-add-on", "cuda_wheels_outdated", ["0.3.35", "make wheelhouse wheelhouse-cuda"]),
        ("old-system", "glibc_too_old", ["2.36", "2.38"]),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(
    answers: dict[str, str], host: str, code: str, words: list[str]
) -> None:
    assert answers[host].startswith(f"[{code}] {host} ")
    assert all(word in answers[host] for word in words), answers[host]
