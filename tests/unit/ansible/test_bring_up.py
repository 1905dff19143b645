"""How the driver is brought up on a host: over folders like the kernel's, with every command only noted."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "roles" / "nvidia_driver" / "files" / "bring_up.py"
RUNNING = "6.1.0-40-amd64"


class Machine:
    """What the script sees of a host, and the commands that it gave."""

    def __init__(self, folder: Path, script: Any) -> None:
        self.folder = folder
        self.script = script
        self.steps = script.Steps(check=False)
        self.fails: set[str] = set()
        self.active = False
        self.conf = folder / "nouveau.conf"
        self.conf.touch()
        self.at(self.conf, 1000)
        for name in ("modules", "boot", "loaded"):
            (folder / name).mkdir()

    def at(self, path: Path, seconds: int) -> None:
        os.utime(path, (seconds, seconds))

    def kernel(self, version: str, image: str, made: int) -> None:
        (self.folder / "modules" / version).mkdir(exist_ok=True)
        self.image(image.format(version), made)

    def image(self, name: str, made: int) -> None:
        path = self.folder / "boot" / name
        path.touch()
        self.at(path, made)

    def load(self, name: str, used: int = 0, version: str = "") -> None:
        module = self.folder / "loaded" / name
        (module / "holders").mkdir(parents=True)
        (module / "refcnt").write_text(f"{used}\n")
        if version:
            (module / "version").write_text(f"{version}\n")

    def hold(self, name: str, holder: str) -> None:
        module = self.folder / "loaded" / name
        (module / "holders" / holder).touch()
        (module / "refcnt").write_text(f"{int((module / 'refcnt').read_text()) + 1}\n")

    def answer(self, *command: str, **_: Any) -> bool:
        line = " ".join(command)
        if command[:2] == ("systemctl", "is-active"):
            return self.active
        if line in self.fails:
            return False
        name = command[-1]
        if command[:2] == ("modprobe", "-r"):
            for holder in (self.folder / "loaded").glob(f"*/holders/{name}"):
                holder.unlink()
                count = holder.parents[1] / "refcnt"
                count.write_text(str(int(count.read_text()) - 1))
            for path in sorted((self.folder / "loaded" / name).rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            (self.folder / "loaded" / name).rmdir()
        elif command[0] == "modprobe" and not (self.folder / "loaded" / name).exists():
            self.load(name, version="580.126.09" if name == "nvidia" else "")
        return True


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    spec = importlib.util.spec_from_file_location("bring_up", SCRIPT)
    assert spec is not None and spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, folder in {"KERNELS": "modules", "BOOT": "boot", "LOADED": "loaded"}.items():
        monkeypatch.setattr(script, name, str(tmp_path / folder))
    made = Machine(tmp_path, script)
    monkeypatch.setattr(script.Steps, "ask", lambda _, *command, **more: made.answer(*command, **more))
    return made


@pytest.mark.parametrize("image", ["initrd.img-{}", "initramfs-{}.img"])
@pytest.mark.parametrize(
    ("made", "old"),
    [
        ({RUNNING: 2000}, False),
        ({RUNNING: 500}, True),
        ({"6.1.0-9-amd64": 500, RUNNING: 2000}, False),
        ({RUNNING: 2000, "6.1.0-100-amd64": 500}, True),
        ({"6.1.0-9-amd64": 500, RUNNING: 500, "6.1.0-100-amd64": 2000}, True),
    ],
)
def test_only_an_initramfs_that_may_boot_next_is_made_anew(
    machine: Machine, image: str, made: dict[str, int], old: bool
) -> None:
    for kernel, seconds in made.items():
        machine.kernel(kernel, image, seconds)

    assert machine.script.initramfs_is_old(str(machine.conf), RUNNING) is old


def test_images_for_rescue_and_dumps_are_left_alone(machine: Machine) -> None:
    machine.kernel(RUNNING, "initramfs-{}.img", 2000)
    machine.image("initramfs-0-rescue-0123456789abcdef.img", 1)
    machine.image(f"initramfs-{RUNNING}kdump.img", 1)

    assert machine.script.initramfs_is_old(str(machine.conf), RUNNING) is False


def test_a_kernel_without_an_initramfs_needs_none(machine: Machine) -> None:
    assert machine.script.initramfs_is_old(str(machine.conf), RUNNING) is False


def test_a_driver_that_runs_as_it_should_is_left_alone(machine: Machine) -> None:
    machine.load("nvidia", version="580.126.09")

    assert machine.script.bring_up(machine.steps, "580.126.09") == ""
    assert machine.script.bring_up(machine.steps, "") == ""
    assert machine.steps.did == []


def test_nouveau_makes_way_for_the_driver(machine: Machine) -> None:
    machine.load("nouveau")

    assert machine.script.bring_up(machine.steps, "580.126.09") == ""
    assert machine.steps.did == [
        "modprobe -r nouveau", "modprobe nvidia", "systemctl restart nvidia-persistenced.service",
    ]  # fmt: skip


def test_nouveau_that_holds_the_gpu_needs_a_reboot(machine: Machine) -> None:
    machine.load("nouveau")
    machine.fails.add("modprobe -r nouveau")

    assert machine.script.bring_up(machine.steps, "580.126.09") == "the driver nouveau holds the GPU"


def test_an_older_driver_is_replaced_by_the_installed_one(machine: Machine) -> None:
    machine.load("nvidia", version="535.261.03")
    machine.load("nvidia_uvm")
    machine.hold("nvidia", "nvidia_uvm")
    machine.active = True

    assert machine.script.bring_up(machine.steps, "580.126.09") == ""
    assert machine.steps.did == [
        "systemctl stop nvidia-persistenced.service", "modprobe -r nvidia_uvm", "modprobe -r nvidia",
        "modprobe nvidia", "systemctl restart nvidia-persistenced.service",
    ]  # fmt: skip


@pytest.mark.parametrize("active", [True, False])
def test_a_driver_in_use_is_left_as_it_was(machine: Machine, active: bool) -> None:
    machine.load("nvidia", used=3, version="535.261.03")
    machine.load("nvidia_uvm")
    machine.hold("nvidia", "nvidia_uvm")
    machine.active = active

    why = machine.script.bring_up(machine.steps, "580.126.09")

    assert why == "driver 535.261.03 runs and is in use, 580.126.09 is installed"
    persistenced = "nvidia-persistenced.service"
    assert machine.steps.did == (
        [f"systemctl stop {persistenced}", f"systemctl start {persistenced}"] if active else []
    )
    assert machine.script.is_loaded("nvidia_uvm")


def test_what_was_unloaded_in_vain_is_loaded_again(machine: Machine) -> None:
    machine.load("nvidia", version="535.261.03")
    machine.load("nvidia_uvm")
    machine.hold("nvidia", "nvidia_uvm")
    machine.active = True
    machine.fails.add("modprobe -r nvidia")

    assert "in use" in machine.script.bring_up(machine.steps, "580.126.09")
    assert machine.steps.did[-2:] == ["modprobe nvidia_uvm", "systemctl start nvidia-persistenced.service"]


def run(machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["-", "580.126.09", str(machine.conf)])
    monkeypatch.setattr(machine.script.shutil, "which", lambda name: f"/usr/sbin/{name}")
    machine.kernel(os.uname().release, "initrd.img-{}", 500)
    machine.script.main()
    return json.loads(capsys.readouterr().out)


def test_an_initramfs_that_cannot_be_made_is_told(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.fails.add("update-initramfs -u -k all")

    found = run(machine, capsys, monkeypatch)

    assert found["problem"] == "`update-initramfs -u -k all` failed or took longer than 1800 s"
    assert (found["reboot"], found["did"]) == ("", ["update-initramfs -u -k all"])


def test_an_initramfs_is_made_before_the_driver_is_loaded(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(machine, capsys, monkeypatch)

    assert (found["problem"], found["reboot"], found["loaded"]) == ("", "", "580.126.09")
    assert found["did"][:2] == ["update-initramfs -u -k all", "modprobe nvidia"]


def test_a_reload_loads_what_ran_before(machine: Machine) -> None:
    machine.load("nvidia", version="580.126.09")
    for name in ("nvidia_uvm", "nvidia_drm"):
        machine.load(name)
        machine.hold("nvidia", name)

    assert machine.script.reload(machine.steps) == {"reboot": "", "problem": ""}

    assert machine.steps.did == [
        "modprobe -r nvidia_uvm", "modprobe -r nvidia_drm", "modprobe -r nvidia",
        "modprobe nvidia", "modprobe nvidia_uvm", "modprobe nvidia_drm", "nvidia-modprobe -u -c0",
    ]  # fmt: skip


def test_a_reload_tells_what_is_in_use_from_what_cannot_be_loaded(machine: Machine) -> None:
    machine.load("nvidia", used=1, version="580.126.09")
    assert machine.script.reload(machine.steps) == {"reboot": "it is in use", "problem": ""}
    assert machine.steps.did == [], "it runs on"

    (machine.folder / "loaded" / "nvidia" / "refcnt").write_text("0")
    machine.fails.add("modprobe nvidia_uvm")
    machine.steps.said = "no such device"
    found = machine.script.reload(machine.steps)
    assert found == {"reboot": "", "problem": "the kernel module nvidia_uvm cannot be loaded: no such device"}


def test_a_command_that_takes_too_long_has_failed(tmp_path: Path) -> None:
    code = f"import runpy; s = runpy.run_path({str(SCRIPT)!r})['Steps'](False); print(s.run('sleep', '9', timeout=0.1))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert done.stdout == "False\n"


def test_check_mode_changes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-", "1.2.3", str(tmp_path / "conf"), "--check"],
        input=SCRIPT.read_text(encoding="utf-8"), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip

    found = json.loads(done.stdout)
    assert (found["problem"], found["reboot"]) == ("", "")
    assert "modprobe nvidia" in found["did"]
