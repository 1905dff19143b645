"""The scripts that roles run on a host: plain Python of the host's own, so they are run here as such."""

from __future__ import annotations

import grp
import hashlib
import importlib.util
import json
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from llama_orch.wheelhouse.processors import LEAST

ROLES = Path(__file__).parents[3] / "roles"


def run(script: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-", *arguments],
        input=script.read_text(encoding="utf-8"),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_probe_answers_all_that_preflight_asks(tmp_path: Path) -> None:
    found = json.loads(run(ROLES / "preflight" / "files" / "probe.py", str(tmp_path / "not" / "there")))

    assert found["free_bytes"][str(tmp_path / "not" / "there")] > 0
    assert found["memory_bytes"] > 2**20
    assert found["arch"] == os.uname().machine
    assert (
        set(yaml.safe_load((ROLES / "preflight/vars/main.yml").read_text())["_preflight_processor_features"]) == LEAST
    )
    assert set(found["processor_features"]) >= LEAST
    assert int(found["glibc"].split(".")[0]) == 2
    assert int(found["glibcxx"].split(".")[0]) == 3
    assert set(found) >= {"os_id", "os_version", "os_name", "systemd", "firewalls", "pythons"}


def test_probe_finds_gpus_without_any_tool(tmp_path: Path) -> None:
    devices = {
        "0000:00:1f.0": ("0x8086", "0x7a04", "0x060100"),
        "0000:01:00.0": ("0x10de", "0x2204", "0x030000"),
        "0000:01:00.1": ("0x10de", "0x1aef", "0x040300"),
        "0000:41:00.0": ("0x10de", "0x20b5", "0x030200"),
        "0000:42:00.0": ("0x10de", "0x20b5", "0x030200"),
        "0000:43:00.4": ("0x10de", "0x20b5", "0x030200"),
    }
    for address, words in devices.items():
        (tmp_path / "pci" / address).mkdir(parents=True)
        for name, word in zip(("vendor", "device", "class"), words, strict=True):
            (tmp_path / "pci" / address / name).write_text(word + "\n")
    # What virtual machines have: a whole GPU, and a virtual function of one.
    for path, driver in (("0000:41:00.0/driver", "nvidia"), ("0000:42:00.0/driver", "vfio-pci")):
        (tmp_path / "drivers" / driver).mkdir(parents=True)
        (tmp_path / "pci" / path).symlink_to(tmp_path / "drivers" / driver)
    (tmp_path / "pci" / "0000:43:00.4" / "physfn").symlink_to(tmp_path / "pci" / "0000:41:00.0")
    script = tmp_path / "probe.py"
    text = (ROLES / "preflight" / "files" / "probe.py").read_text(encoding="utf-8")
    script.write_text(text.replace("/sys/bus/pci/devices", str(tmp_path / "pci")))

    assert json.loads(run(script, "/"))["nvidia_gpus"] == [
        {"address": "0000:01:00.0", "device": "2204"},
        {"address": "0000:41:00.0", "device": "20b5"},
    ]


def test_prune_keeps_what_a_link_shows_and_what_runs(tmp_path: Path) -> None:
    for name in ("old", "linked", "running"):
        (tmp_path / "releases" / name).mkdir(parents=True)
    (tmp_path / "current").symlink_to(tmp_path / "releases" / "linked")
    script = tmp_path / "releases" / "running" / "serve.py"
    script.write_text("print('up', flush=True); input()")
    worker = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin and worker.stdout
    worker.stdout.readline()

    try:
        printed = run(ROLES / "common" / "files" / "prune_releases.py", str(tmp_path))
    finally:
        worker.communicate(b"\n", timeout=10)

    assert printed == "removed old\n"
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == ["linked", "running"]
    assert run(ROLES / "common" / "files" / "prune_releases.py", str(tmp_path)) == "removed running\n"


def a_process(*arguments: str, ignore: str = "") -> subprocess.Popen[bytes]:
    """One that lives until it is signalled, with these words in its command line."""
    ignored = f"signal.signal(signal.{ignore}, signal.SIG_IGN); " if ignore else ""
    code = f"import signal, time; {ignored}print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


def test_workers_are_ended_and_nobody_else(tmp_path: Path) -> None:
    script = ROLES / "hive" / "files" / "end_workers.py"
    for name, told in (("cpu", '{"backend": "cpu"}'), ("gpu", '{"backend": "cuda"}'), ("torn", '{"backe')):
        (tmp_path / "workers" / name).mkdir(parents=True)
        (tmp_path / "workers" / name / "spec.json").write_text(told)

    def a_worker(name: str, *more: str, ignore: str = "", home: Path = tmp_path) -> subprocess.Popen[bytes]:
        spec = home / "workers" / name / "spec.json"
        return a_process(*more, "-m", "llama_orch.worker", "--spec", str(spec), ignore=ignore)

    on_cpu, drains, stays = a_worker("cpu"), a_worker("gpu"), a_worker("torn", ignore="SIGUSR1")
    strangers = [
        a_process("llama_orch.hive", str(tmp_path / "workers" / "gpu")),
        a_worker("gpu", home=tmp_path / "another"),
        # The shim of one that serves on.
        a_worker("cpu", "llama_orch.hive.shim"),
    ]
    try:
        printed = run(script, f"{tmp_path}/", "gpu", "0.3", "10")
        assert sorted(map(int, printed.split())) == sorted([drains.pid, stays.pid])
        assert (drains.wait(10), stays.wait(10)) == (-signal.SIGUSR1, -signal.SIGTERM)
        assert on_cpu.poll() is None
        assert strangers[2].poll() is None
        assert set(map(int, run(script, str(tmp_path), "all", "5", "10").split())) == {on_cpu.pid, strangers[2].pid}
        assert on_cpu.wait(10) == -signal.SIGUSR1
        assert [stranger.poll() for stranger in strangers[:2]] == [None] * 2
        assert strangers[2].wait(10) == -signal.SIGUSR1, "a shim that outlives its worker is ended as well"
        assert run(script, str(tmp_path), "all", "0.3", "10") == "\n"
    finally:
        for process in (on_cpu, drains, stays, *strangers):
            process.kill()
            process.communicate()


def test_a_worker_that_begins_meanwhile_is_ended_too(tmp_path: Path) -> None:
    (tmp_path / "workers" / "late").mkdir(parents=True)
    (tmp_path / "workers" / "late" / "spec.json").write_text('{"backend": "cuda"}')
    # As a shim that was held up: SIGUSR1 has it start what it was to start.
    serve = f"import time; time.sleep(60)', '-m', 'llama_orch.worker', '--spec', '{tmp_path}/workers/late/spec.json"
    code = (
        "import signal, subprocess, sys; signal.signal(10, lambda *_: print(subprocess.Popen([sys.executable, '-c', "
        f"'{serve}']).pid, flush=True) or sys.exit()); print(flush=True); signal.pause()"
    )
    words = ["-m", "llama_orch.hive.shim", f"{tmp_path}/workers/late"]
    shim = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    assert shim.stdout
    shim.stdout.readline()
    try:
        printed = run(ROLES / "hive" / "files" / "end_workers.py", str(tmp_path), "gpu", "5", "10")
    finally:
        shim.kill()
        late = int(shim.communicate()[0])

    assert set(map(int, printed.split())) == {shim.pid, late}


def test_a_host_is_up_since_its_first_process() -> None:
    up = float(run(ROLES / "gpu_remedy" / "files" / "uptime.py"))
    told = subprocess.run(["ps", "-o", "etimes=", "-p", "1"], capture_output=True, text=True, check=True).stdout
    assert abs(up - int(told)) < 60


def test_prune_says_nothing_where_nothing_was_installed(tmp_path: Path) -> None:
    assert run(ROLES / "common" / "files" / "prune_releases.py", str(tmp_path / "missing")) == ""


def test_look_tells_what_stands_at_each_path(tmp_path: Path) -> None:
    script = ROLES / "common" / "files" / "look.py"
    folder, file, link, nothing = (tmp_path / name for name in ("folder", "file", "link", "nothing"))
    folder.mkdir(0o750)
    file.write_bytes(b"secret\n")
    file.chmod(0o600)
    link.symlink_to(folder)

    found = json.loads(run(script, *map(str, (folder, file, link, nothing, file / "below"))))

    digest = hashlib.sha256(b"secret\n").hexdigest()
    owner = f"{pwd.getpwuid(os.getuid())[0]} {grp.getgrgid(folder.stat().st_gid)[0]}"
    assert found == {
        str(folder): f"directory 0750 {owner}",
        str(file): f"file 0600 {owner} {digest}",
        str(link): f"link {folder}",
        str(nothing): "",
        str(file / "below"): "",
    }


def test_the_table_of_files_speaks_as_look_does(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("standing", ROLES / "common" / "filter_plugins" / "standing.py")
    assert spec is not None and spec.loader is not None
    standing: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(standing)
    # The group of an account of ours has its name; whoever runs the tests may have another.
    owner, group = pwd.getpwuid(os.getuid())[0], grp.getgrgid(os.getgid())[0]
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("größer\n", encoding="utf-8")
    file.chmod(0o640)
    folder.mkdir(0o700)

    found = json.loads(run(ROLES / "common" / "files" / "look.py", str(file), str(folder)))

    said = {
        str(file): standing.file_standing({"mode": "0640", "owner": owner}, "größer\n"),
        str(folder): standing.folder_standing({"mode": "0700", "owner": owner}),
    }
    assert found == {path: words.replace(f"{owner} {owner}", f"{owner} {group}") for path, words in said.items()}
    assert standing.places(["a/b"], "/to", "/from", "root", "0600") == [
        {"path": "/to/a/b", "source": "/from/a/b", "owner": "root", "mode": "0600"}
    ]
