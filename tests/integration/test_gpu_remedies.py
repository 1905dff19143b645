"""Remedies where something goes wrong: the real roles here, with a systemd, a driver and a hive of the test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
ROLES = ROOT / "roles"
HIVE = "llama-orch-hive.service"
UUID = "GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c"
GPU = {"uuid": UUID, "name": "NVIDIA A10", "problem": None}
HEALTHY: dict[str, Any] = {"nvml": {"available": True, "driver_version": "580.1"}, "gpus": [GPU], "conditions": []}
SILENT = {"nvml": {"available": False, "reason": "driver not loaded"}, "gpus": [], "conditions": []}
MUTE = {"type": "driver_silent", "uuid": None, "message": "m", "remedy": "reload_driver"}
ECC = {"type": "ecc_uncorrected", "uuid": UUID, "message": "GPU 0 has errors", "remedy": "reset_gpu"}
PLAY = """\
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role: {{name: {role}, tasks_from: {entry}}}
"""
# Each unit is a file that is there while it runs.
SYSTEMCTL = """\
#!/bin/bash
unit=${{!#}}; unit=${{unit##*/}}; running={state}/${{unit%.service}}
echo "$*" >> {state}/asked
case $1 in
  is-active) [ -e $running ] ;;
  show) echo LoadState=loaded; [ -e $running ] && echo ActiveState=active || echo ActiveState=inactive ;;
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
        self.program("systemctl", SYSTEMCTL.format(state=self.state))
        self.program("nvidia-smi", NVIDIA_SMI.format(state=self.state, after=after, devices=self.devices))
        for name in ("modinfo", "journalctl"):
            self.program(name, "#!/bin/sh\n")
        self.says(HEALTHY)
        after.write_text(json.dumps(HEALTHY))
        machine = self

        class Hive(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not (machine.state / "llama-orch-hive").exists():
                    self.send_error(503)
                    return
                answers = {
                    "/api/v1/devices": machine.devices.read_text(),
                    "/api/v1/hive": '{"hive_id": "here"}',
                    "/api/v1/workers": json.dumps({"workers": machine.workers}),
                }
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(answers[self.path].encode())

            def do_POST(self) -> None:
                self.send_response(202)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(b'{"id": "w-1", "status": "loading"}')

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.workers: list[dict[str, Any]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Hive)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

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

    def play(
        self, entry: str, *words: str, role: str = "gpu_remedy", **variables: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run one entry point of a role."""
        return self.ansible(PLAY.format(role=role, entry=entry), {"here": {}}, *words, **variables)

    def ansible(
        self, plays: str, hosts: dict[str, Any], *words: str, **variables: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run plays on hosts that are this machine where they do not say otherwise."""
        (self.folder / "play.yml").write_text(plays)
        inventory = {"all": {"vars": {"ansible_connection": "local"}, "hosts": hosts}}
        (self.folder / "hosts.yml").write_text(json.dumps(inventory))
        known = {
            "_hive_unit": f"../../..{self.folder / HIVE}",
            "_gpu_remedy_stopped_file": str(self.stopped),
            "gpu_remedy_services": ["nvidia-dcgm", "nvidia-persistenced"],
            "hive_port": self.server.server_port,
            "hive_secrets_dir": str(self.folder / "secrets"),
            "hive_start_timeout_s": 3,
            "preflight_host": {"nvidia_gpus": []},
        }
        return subprocess.run(
            [
                Path(sys.executable).with_name("ansible-playbook"), "-i", self.folder / "hosts.yml",
                "-e", json.dumps({**known, **variables}), "-e", f"ansible_python_interpreter={sys.executable}",
                self.folder / "play.yml", *words,
            ],
            env={
                **os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                "ANSIBLE_ROLES_PATH": str(ROLES), "ANSIBLE_NOCOLOR": "1",
            },
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=180, check=False,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def words(run: subprocess.CompletedProcess[str]) -> str:
    return " ".join(run.stdout.split())


def test_a_remedy_that_was_cut_short_is_carried_on(machine: Machine) -> None:
    machine.says({**HEALTHY, "conditions": [ECC]})
    machine.stopped.write_text("nvidia-persistenced\n")
    machine.run("nvidia-dcgm")

    run = machine.play("reset_gpu")

    assert run.returncode == 0, run.stdout
    assert (machine.state / "asked.while").read_text() == "", "nothing ran while the GPU was reset"
    assert machine.running == {"llama-orch-hive", "nvidia-dcgm", "nvidia-persistenced"}
    assert not machine.stopped.exists()


def test_what_is_stopped_is_written_down_first(machine: Machine) -> None:
    machine.run("llama-orch-hive", "nvidia-persistenced")
    machine.program("nvidia-smi", f"#!/bin/sh\ncp {machine.stopped} {machine.folder}/seen\n")

    run = machine.play("reset_gpu", gpu_remedy_gpu=UUID)

    assert run.returncode == 0, run.stdout
    assert (machine.folder / "seen").read_text() == "nvidia-persistenced\n"


def test_a_look_without_changes_stops_nothing(machine: Machine) -> None:
    machine.run("llama-orch-hive", "nvidia-persistenced")

    run = machine.play("reset_gpu", "--check", gpu_remedy_gpu=UUID)

    assert run.returncode == 0, run.stdout
    assert f"would reset {UUID}" in run.stdout
    asked = {line.split()[0] for line in (machine.state / "asked").read_text().splitlines()}
    assert asked <= {"is-active", "show", "is-enabled"}
    assert not machine.stopped.exists()


def test_a_service_that_cannot_be_started_keeps_no_hive_down(machine: Machine) -> None:
    machine.run("llama-orch-hive", "nvidia-persistenced")
    (machine.state / "nvidia-persistenced.broken").touch()

    run = machine.play("reset_gpu", gpu_remedy_gpu=UUID)

    assert machine.running == {"llama-orch-hive"}
    assert run.returncode == 2
    assert "[remedy_without_effect] here after reset_gpu: Unable to start service nvidia-persistenced" in words(run)
    assert machine.stopped.read_text().split() == ["nvidia-persistenced"]

    (machine.state / "nvidia-persistenced.broken").unlink()
    run = machine.play("resume")
    assert run.returncode == 0, run.stdout
    assert machine.running == {"llama-orch-hive", "nvidia-persistenced"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (HEALTHY, SILENT, 2),
        ({**SILENT, "conditions": [MUTE]}, SILENT, 2),
        ({**HEALTHY, "conditions": [ECC]}, {**HEALTHY, "conditions": [ECC]}, 2),
        ({**HEALTHY, "conditions": [ECC]}, HEALTHY, 0),
        # Neither a driver that answers nor a GPU was ever there.
        (SILENT, SILENT, 0),
    ],
)
def test_only_a_hive_that_says_so_was_helped(
    machine: Machine, before: dict[str, Any], after: dict[str, Any], expected: int
) -> None:
    machine.run("llama-orch-hive")
    machine.says(before)
    (machine.folder / "after.json").write_text(json.dumps(after))

    run = machine.play("reset_gpu", gpu_remedy_gpu=UUID, hive_gpus_wait_s=2)

    assert run.returncode == expected, run.stdout
    assert ("[remedy_without_effect]" in run.stdout) == bool(expected)


def test_a_driver_that_only_the_bus_knows_of_has_to_answer(machine: Machine) -> None:
    machine.run("llama-orch-hive")
    machine.says(SILENT)
    (machine.folder / "after.json").write_text(json.dumps(SILENT))
    bus = {"nvidia_gpus": [{"address": "0000:01:00.0", "device": "2236"}]}

    run = machine.play("reset_gpu", gpu_remedy_gpu=UUID, preflight_host=bus, hive_gpus_wait_s=2)

    assert run.returncode == 2
    assert "NVML does not answer: driver not loaded" in words(run)


@pytest.mark.parametrize(("suspended", "status"), [("all", 0), ("gpu", 2)])
def test_what_the_kernel_holds_stops_no_reboot(machine: Machine, suspended: str, status: int) -> None:
    machine.run("llama-orch-hive")
    machine.workers.append({"pid": 4711, "backend": "cuda"})
    machine.program("python3", "#!/bin/sh\ncat > /dev/null\necho workers survive SIGKILL: 4711 >&2\nexit 1\n")

    run = machine.play("suspend", role="hive", hive_suspend=suspended)

    assert run.returncode == status, run.stdout
    assert ("workers survive SIGKILL: 4711. The reboot ends it." in words(run)) == (status == 0)


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ([GPU] * 2, "NVIDIA A10, NVIDIA A10 answer through driver 580.1"),
        ([GPU, {**GPU, "name": "", "problem": "gpu_lost"}], "here has 2 NVIDIA GPUs on its PCI bus, and 1 of them"),
        ([GPU], "here has 2 NVIDIA GPUs on its PCI bus, and 1 of them"),
        ([], "[gpu_not_answering] here has 2 NVIDIA GPUs on its PCI bus, and its agent sees none"),
    ],
)
def test_one_broken_gpu_of_several_takes_no_hive_down(machine: Machine, gpus: list[Any], said: str) -> None:
    machine.run("llama-orch-hive")
    machine.says({**HEALTHY, "gpus": gpus})
    bus = {"nvidia_gpus": [{"address": "0000:01:00.0"}, {"address": "0000:02:00.0"}]}

    run = machine.play("gpus", role="hive", preflight_host=bus, hive_gpus_wait_s=2)

    assert said in words(run)
    assert run.returncode == (0 if gpus else 2), run.stdout


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
    for play in (reboots, makes):
        play["become"] = False

    away = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": free_port()}
    run = machine.ansible(
        yaml.safe_dump([group, reboots, makes]),
        # Ansible never reboots over a local connection: what comes of that is a reboot that did not begin.
        {"own": {}, "other": {}, "away": away},
        common_run_id="r", nvidia_driver_host={"boot_id": "b"}, nvidia_driver_reboot=True,
        nvidia_driver_state={"reboot": "nouveau holds the GPU"},
    )  # fmt: skip

    said = words(run)
    assert "other is made a hive" in said, run.stdout
    assert "[unreachable_host] away needs a reboot for its driver and cannot be reached" in said
    assert "would reboot the control node" in said
    assert "[reboot_held_back]" not in said, "no host was rebooted"
    assert said.count("is made a hive") == 1
    assert (machine.state / "asked").read_text().count("stop ") == 1
    assert machine.running == {"llama-orch-hive"}, "no reboot came: the hive serves on"


def test_a_declared_worker_of_which_the_hive_says_nothing_is_not_ready(machine: Machine) -> None:
    machine.run("llama-orch-hive")
    declared = {"name": "chat", "model_ref": "hf:demo/tiny"}

    run = machine.play("workers", role="hive", hive_workers=[declared], hive_apply_timeout_s=2)

    assert run.returncode == 2, run.stdout
    assert "[worker_failed] hive_workers of here: chat is not among what the hive tells of" in words(run)
