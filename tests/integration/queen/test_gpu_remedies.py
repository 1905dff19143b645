"""Remedies where something goes wrong: the real roles here, with a systemd, a driver and a hive of the test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_orch.contract.proof import proof_of
from tests.support.playbook_run import Run
from tests.support.ports import free_port

ROOT = Path(__file__).parents[3]
ROLES = ROOT / "roles"
HIVE = "llama-orch-hive.service"
UUID = "GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c"
GPU = {"uuid": UUID, "name": "NVIDIA A10", "problem": None}
HEALTHY: dict[str, Any] = {"nvml": {"available": True, "driver_version": "580.1"}, "gpus": [GPU], "conditions": []}
SILENT = {"nvml": {"available": False, "reason": "driver not loaded"}, "gpus": [], "conditions": []}
MUTE = {"type": "driver_silent", "uuid": None, "message": "m", "remedy": "reload_driver"}
ECC = {"type": "ecc_uncorrected", "uuid": UUID, "message": "GPU 0 has errors", "remedy": "reset_gpu"}
# Each unit is a file that is there while it runs.
SYSTEMCTL = """\
#!/bin/bash
unit=${{!#}}; unit=${{unit##*/}}; running={state}/${{unit%.service}}
echo "$*" >> {state}/asked
case $1 in
  is-active) shift; for unit; do [ -e {state}/$unit ] && echo active || echo inactive; done ;;
  show) [[ $* != *MainPID* ]] || {{ echo {pid}; exit; }}
    echo LoadState=loaded; [ -e $running ] && echo ActiveState=active || echo ActiveState=inactive ;;
  start) [ ! -e $running.broken ] || {{ echo it is broken >&2; exit 1; }}; touch $running ;;
  stop) rm -f $running ;;
esac
"""
NVIDIA_SMI = """\
#!/bin/bash
ls {state} | grep -v asked | tr '\\n' ' ' > {state}/asked.while
cp {after} {devices}
"""


class Machine:
    """A host of files: `state` holds the running units, `devices` what its hive says while that is running."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.devices = folder, folder / "state", folder / "devices.json"
        self.stopped = folder / "stopped"
        after = folder / "after.json"
        (folder / "bin").mkdir()
        self.state.mkdir()
        (folder / HIVE).touch()
        self.program("systemctl", SYSTEMCTL.format(state=self.state, pid=os.getpid()))
        self.program("nvidia-smi", NVIDIA_SMI.format(state=self.state, after=after, devices=self.devices))
        for name in ("modinfo", "journalctl"):
            self.program(name, "#!/bin/sh\n")
        self.says(HEALTHY)
        after.write_text(json.dumps(HEALTHY))
        machine = self

        class Hive(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, _, nonce = self.path.partition("?nonce=")
                if not (machine.state / "llama-orch-hive").exists():
                    self.send_error(503)
                    return
                name = machine.folder.name
                token = (machine.folder / "secrets" / "hives" / name).read_text().strip()
                answers = {
                    "/api/v1/proof": json.dumps({"name": name, "proof": proof_of(token, "hive", name, nonce)}),
                    "/api/v1/devices": machine.devices.read_text(),
                    "/api/v1/hive": json.dumps({"hive_id": name}),
                    "/api/v1/workers": json.dumps({"workers": []}),
                }
                self.answer(200, answers[path])

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(202, '{"id": "w-1", "status": "loading"}')

            def answer(self, status: int, text: str) -> None:
                body = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Hive)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End its hive."""
        self.server.shutdown()
        self.server.server_close()

    def program(self, name: str, text: str) -> None:
        """Put a program before the machine's own."""
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def says(self, devices: dict[str, Any]) -> None:
        """What the hive answers from now on."""
        self.devices.write_text(json.dumps(devices))

    def run(self, *names: str) -> None:
        """Let these units run."""
        for name in names:
            (self.state / name).touch()

    @property
    def running(self) -> set[str]:
        """The units that run."""
        return {path.name for path in self.state.iterdir() if not path.name.startswith("asked") and not path.suffix}

    @property
    def variables(self) -> dict[str, Any]:
        """What an inventory says of it."""
        return {
            "machine_folder": str(self.folder),
            "hive_state_dir": str(self.folder / "hive"),
            "machine_port": self.server.server_port,
            "machine_path": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }


def ansible(folder: Path, plays: Any, hosts: Mapping[str, Mapping[str, Any]], *words: str, **variables: Any) -> Run:
    """Run plays on hosts that are this machine where they do not say otherwise."""
    for play in plays:
        play["environment"] = [play.get("environment", {}), {"PATH": "{{ machine_path }}"}]
    (folder / "play.yml").write_text(yaml.safe_dump(plays))
    inventory = {"all": {"vars": {"ansible_connection": "local", "machine_path": os.environ["PATH"]}, "hosts": hosts}}
    (folder / "hosts.yml").write_text(json.dumps(inventory))
    # Stronger than the roles' own variables; what differs from host to host stands in the inventory.
    known = {
        "_hive_unit": "../../..{{ machine_folder }}/" + HIVE,
        "_gpu_remedy_stopped_file": "{{ machine_folder }}/stopped",
        "gpu_remedy_services": ["nvidia-dcgm", "nvidia-persistenced"],
        "hive_port": "{{ machine_port }}",
        "hive_secrets_dir": "{{ machine_folder | default('" + str(folder) + "') }}/secrets",
        "hive_start_timeout_s": 3,
        "common_run": {"LLAMA_ORCH_RUN": "r", "LLAMA_ORCH_RUN_HOST": "{{ inventory_hostname }}"},
        "preflight_host": {"nvidia_gpus": "{{ machine_bus | default([]) }}"},
    }
    began = time.monotonic()
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"), "-i", folder / "hosts.yml",
            "-e", json.dumps({**known, **variables}), "-e", f"ansible_python_interpreter={sys.executable}",
            folder / "play.yml", *words,
        ],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROLES), "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    return Run.of_process(done, time.monotonic() - began)


def included(role: str, *entries: str, **variables: Any) -> list[dict[str, Any]]:
    """A play of entry points of a role."""
    tasks = [
        {"ansible.builtin.include_role": {"name": role, "tasks_from": entry}, "vars": variables} for entry in entries
    ]
    return [{"hosts": "all", "gather_facts": False, "tasks": tasks}]


Made = Callable[[str], Machine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Made]:
    """Makes a machine of that name."""
    made: list[Machine] = []

    def one(name: str) -> Machine:
        (tmp_path / name).mkdir()
        made.append(Machine(tmp_path / name))
        return made[-1]

    yield one
    for machine in made:
        machine.close()


@pytest.fixture
def machine(make: Made) -> Machine:
    return make("here")


def play(machine: Machine, entry: str, *words: str, role: str = "gpu_remedy", **variables: Any) -> Run:
    """Run one entry point of a role on one machine."""
    hosts = {machine.folder.name: machine.variables}
    return ansible(machine.folder, included(role, entry), hosts, *words, **variables)


def test_a_remedy_that_was_cut_short_is_carried_on(machine: Machine) -> None:
    machine.says({**HEALTHY, "conditions": [ECC]})
    machine.stopped.write_text("nvidia-persistenced\n")
    machine.run("nvidia-dcgm")

    run = play(machine, "reset_gpu")

    assert run.status == 0, run.output
    assert (machine.state / "asked.while").read_text() == "", "nothing ran while the GPU was reset"
    assert machine.running == {"llama-orch-hive", "nvidia-dcgm", "nvidia-persistenced"}
    assert not machine.stopped.exists()


def test_what_is_stopped_is_written_down_first(machine: Machine) -> None:
    machine.run("llama-orch-hive", "nvidia-persistenced")
    machine.program("nvidia-smi", f"#!/bin/sh\ncp {machine.stopped} {machine.folder}/seen\n")

    run = play(machine, "reset_gpu", gpu_remedy_gpu=UUID)

    assert run.status == 0, run.output
    assert (machine.folder / "seen").read_text() == "nvidia-persistenced\n"


def test_a_look_without_changes_stops_nothing(machine: Machine) -> None:
    machine.run("llama-orch-hive", "nvidia-persistenced")

    run = play(machine, "reset_gpu", "--check", gpu_remedy_gpu=UUID)

    assert run.status == 0, run.output
    assert f"would reset {UUID}" in run.output
    asked = {line.split()[0] for line in (machine.state / "asked").read_text().splitlines()}
    assert asked <= {"is-active", "show", "is-enabled"}
    assert not machine.stopped.exists()


def test_a_service_that_cannot_be_started_keeps_no_hive_down(machine: Machine) -> None:
    machine.run("llama-orch-hive", "nvidia-persistenced")
    (machine.state / "nvidia-persistenced.broken").touch()

    run = play(machine, "reset_gpu", gpu_remedy_gpu=UUID)

    assert machine.running == {"llama-orch-hive"}
    assert run.status == 2
    assert "[remedy_without_effect] here after reset_gpu: Unable to start service nvidia-persistenced" in run.words
    assert machine.stopped.read_text().split() == ["nvidia-persistenced"]

    (machine.state / "nvidia-persistenced.broken").unlink()
    run = play(machine, "resume")
    assert run.status == 0, run.output
    assert machine.running == {"llama-orch-hive", "nvidia-persistenced"}


def test_only_a_hive_that_says_so_was_helped(make: Made, tmp_path: Path) -> None:
    ailing: dict[str, Any] = {**HEALTHY, "conditions": [ECC]}
    # What each hive says before the reset and after it, what is on its bus, and what the remedy says then.
    cases: dict[str, tuple[dict[str, Any], dict[str, Any], list[Any], str]] = {
        "fell-silent": (HEALTHY, SILENT, [], "NVML does not answer: driver not loaded"),
        "stayed-silent": ({**SILENT, "conditions": [MUTE]}, SILENT, [], "NVML does not answer: driver not loaded"),
        "stayed-ill": (ailing, ailing, [], "GPU 0 has errors"),
        "was-helped": (ailing, HEALTHY, [], ""),
        # Neither a driver that answers nor a GPU was ever there.
        "had-nothing": (SILENT, SILENT, [], ""),
        # Only the bus knows of a GPU, and a driver is installed.
        "on-the-bus": (SILENT, SILENT, [{"address": "0000:01:00.0"}], "NVML does not answer: driver not loaded"),
    }
    hosts: dict[str, Any] = {}
    for name, (before, after, bus, _) in cases.items():
        machine = make(name)
        machine.run("llama-orch-hive")
        machine.says(before)
        (machine.folder / "after.json").write_text(json.dumps(after))
        hosts[name] = {"machine_bus": bus, **machine.variables}
    # What the remedy does between the two needs no second look: the tests above go through all of it.
    (reset,) = included("gpu_remedy", "preflight", "verify", __gpu_remedy="reset_gpu")
    reset["tasks"].insert(1, {"ansible.builtin.command": {"argv": ["nvidia-smi", "--gpu-reset"]}})

    run = ansible(tmp_path, [reset], hosts, gpu_remedy_gpu=UUID, hive_gpus_wait_s=2)

    assert run.failed == {name: bool(said) for name, (*_, said) in cases.items()}, run.output
    for name, (*_, said) in cases.items():
        assert ("[remedy_without_effect]" in run.of(name)) == bool(said)
        assert said in run.of(name)


def test_what_the_kernel_holds_stops_no_reboot(make: Made, tmp_path: Path) -> None:
    hosts: dict[str, Any] = {}
    for name, suspended in (("to-reboot", "all"), ("to-reset", "gpu")):
        machine = make(name)
        machine.run("llama-orch-hive")
        machine.program("python3", "#!/bin/sh\ncat > /dev/null\necho workers survive SIGKILL: 4711 >&2\nexit 1\n")
        hosts[name] = {"hive_suspend": suspended, **machine.variables}

    run = ansible(tmp_path, included("hive", "suspend"), hosts)

    assert run.failed == {"to-reboot": False, "to-reset": True}, run.output
    for name, failed in run.failed.items():
        assert ("workers survive SIGKILL: 4711. Only a reboot ends it." in run.of(name)) != failed


def test_one_broken_gpu_of_several_takes_no_hive_down(make: Made, tmp_path: Path) -> None:
    one_of_two = "has 2 NVIDIA GPUs on its PCI bus, and 1 of them"
    cases: dict[str, tuple[list[Any], str]] = {
        "both": ([GPU] * 2, "NVIDIA A10, NVIDIA A10 answer through driver 580.1"),
        "one-broken": ([GPU, {**GPU, "name": "", "problem": "gpu_lost"}], f"one-broken {one_of_two}"),
        "one-gone": ([GPU], f"one-gone {one_of_two}"),
        "none": ([], "[gpu_not_answering] none has 2 NVIDIA GPUs on its PCI bus, and its agent sees none"),
    }
    bus = [{"address": "0000:01:00.0"}, {"address": "0000:02:00.0"}]
    hosts: dict[str, Any] = {}
    for name, (gpus, _) in cases.items():
        machine = make(name)
        machine.run("llama-orch-hive")
        machine.says({**HEALTHY, "gpus": gpus})
        hosts[name] = {"machine_bus": bus, **machine.variables}

    run = ansible(tmp_path, included("hive", "gpus"), hosts, hive_gpus_wait_s=2)

    for name, (gpus, said) in cases.items():
        assert said in run.of(name), run.output
        assert run.failed[name] == (not gpus)


def test_a_host_that_is_not_there_ends_no_other_hosts_run(machine: Machine) -> None:
    machine.run("llama-orch-hive")
    plays = {play["name"]: play for play in yaml.safe_load((ROOT / "playbooks" / "hive.yml").read_text())}
    reboots, makes = plays["Reboot hosts whose driver needs it"], plays["Make hosts hives"]
    group = {
        "name": "Say which hosts need a reboot", "hosts": "own,away", "gather_facts": False,
        "tasks": [{"ansible.builtin.group_by": {"key": "nvidia_driver_reboot"}}],
    }  # fmt: skip
    del makes["roles"]
    makes |= {"hosts": "all", "tasks": [{"ansible.builtin.debug": {"msg": "{{ inventory_hostname }} is made a hive"}}]}
    for each in (reboots, makes):
        each["become"] = False

    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": free_port()}
    run = ansible(
        machine.folder,
        [group, reboots, makes],
        # Ansible never reboots over a local connection: what comes of that is a reboot that did not begin.
        {"own": machine.variables, "other": machine.variables, "away": away},
        common_own_machine=False, nvidia_driver_reboot=True,
        nvidia_driver_state={"reboot": "nouveau holds the GPU"},
    )  # fmt: skip

    assert "other is made a hive" in run.words, run.output
    assert "[unreachable_host] away needs a reboot for its driver and cannot be reached" in run.words
    assert "would reboot the control node" in run.words
    assert "[reboot_held_back]" not in run.words, "no host was rebooted"
    assert run.words.count("is made a hive") == 1
    assert (machine.state / "asked").read_text().count("stop ") == 1
    assert machine.running == {"llama-orch-hive"}, "no reboot came: the hive serves on"


def test_a_declared_worker_of_which_the_hive_says_nothing_is_not_ready(machine: Machine) -> None:
    machine.run("llama-orch-hive")
    declared = {"name": "chat", "model_ref": "hf:demo/tiny"}

    run = play(machine, "workers", role="hive", hive_workers=[declared], hive_apply_timeout_s=2)

    assert run.status == 2, run.output
    assert "[worker_failed] hive_workers of here: chat is not among what the hive tells of" in run.words
