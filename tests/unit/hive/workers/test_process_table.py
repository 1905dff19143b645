from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama_orch.base import processes
from llama_orch.contract.process import ENDED_FILE, WorkerEnded
from llama_orch.hive import shim
from llama_orch.hive.workers import ending, process_table


def a_launch(folder: Path, launch: str = "this") -> str:
    (folder / shim.LAUNCH_FILE).write_text(launch)
    return launch


def run_shim(folder: Path, *command: str) -> WorkerEnded:
    (folder / "tmp").mkdir(exist_ok=True)
    arguments = [sys.executable, shim.__file__, str(folder), a_launch(folder), "--", *command]
    subprocess.run(arguments, timeout=30, check=False)
    return WorkerEnded.model_validate_json((folder / ENDED_FILE).read_bytes())


def test_the_shim_writes_how_its_command_ended(tmp_path: Path):
    ended = run_shim(tmp_path, sys.executable, "-c", "raise SystemExit(3)")
    assert (ended.exit_code, ended.signal) == (3, None)
    assert ended.uptime_s is not None and 0 <= processes.uptime() - ended.uptime_s < 30
    ended = run_shim(tmp_path, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert (ended.exit_code, ended.signal) == (None, signal.SIGKILL)
    assert (run_shim(tmp_path, "/no/such/program")).exit_code == 127
    problem = ending.describe(WorkerEnded(exit_code=None, signal=9, at=ended.at), " while nobody looked")
    assert problem.message == "the worker's process was ended by signal 9 (SIGKILL) while nobody looked"


def test_a_shim_that_comes_late_starts_nothing(tmp_path: Path):
    started = tmp_path / "started"
    command = [sys.executable, shim.__file__, str(tmp_path), "first", "--", "/usr/bin/touch", str(started)]
    for present in ("second", "", None):
        (tmp_path / shim.LAUNCH_FILE).unlink(missing_ok=True)
        if present is not None:
            a_launch(tmp_path, present)
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, "nothing is started" in done.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == []
    a_launch(tmp_path, "first")
    subprocess.run(command, timeout=30, check=True)
    assert started.exists()


def test_the_shim_hands_on_the_token_a_folder_for_temporary_files_and_default_signals(tmp_path: Path):
    read_end, write_end = os.pipe()
    os.write(write_end, b"a secret")
    os.close(write_end)
    script = (
        "import os, signal, sys; print(os.read(int(sys.argv[2]), 99).decode(), os.environ['TMPDIR'],"
        " signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    )
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-c", script, "--token-fd", str(read_end)]
    done = subprocess.run(
        [sys.executable, shim.__file__, str(tmp_path), a_launch(tmp_path), "--", *command],
        pass_fds=(read_end,),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    os.close(read_end)
    assert done.stdout.split() == ["a", "secret", str(tmp_path / "tmp"), "True"]
    recorded = json.loads((tmp_path / "process.json").read_text())
    assert recorded["boot_id"] == processes.boot_id()
    assert "a secret" not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


def test_a_process_is_known_by_pid_and_start():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    began = processes.start_time(child.pid)
    assert began is not None
    stranger, known = process_table.Process(child.pid, began - 1), process_table.Process(child.pid, began)
    stranger.send(signal.SIGKILL)
    assert known.lives()
    assert not stranger.lives()
    known.send(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not known.lives(), "one that waits to be reaped has ended"
    child.wait(10)
    known.send(signal.SIGKILL)
    assert processes.start_time(child.pid) is None


def test_processes_are_found_by_their_folder_and_not_those_of_containers(tmp_path: Path):
    spec = process_table.workers_dir(tmp_path) / "w1" / "spec.json"
    # A process shows its new command line only a moment after exec: it says itself that it is there.
    wait = "import time; print('started', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", wait, process_table.WORKER, "--spec", str(spec)]
    in_namespace = (
        "import ctypes, json, os, subprocess\n"
        "if ctypes.CDLL(None, use_errno=True).unshare(0x20000000): raise SystemExit(9)\n"
        "child = subprocess.Popen(json.loads(os.environ['COMMAND']))\n"
        "os.read(0, 1)\n"
        "child.kill(); child.wait()\n"
    )
    assert process_table.find(tmp_path) == {}
    with subprocess.Popen(command, stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        try:
            assert ours.stdout.readline() == b"started\n"
            assert [found.pid for found in process_table.find(tmp_path)["w1"]] == [ours.pid]
            assert process_table.find(tmp_path / "other") == {}
        finally:
            ours.kill()
    assert process_table.find(tmp_path) == {}
    with subprocess.Popen(
        [sys.executable, "-c", in_namespace],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "COMMAND": json.dumps(command)},
    ) as container:
        assert container.stdout is not None
        if container.stdout.readline() != b"started\n":
            pytest.skip("a process namespace needs root")
        assert process_table.find(tmp_path) == {}, "the hive in the container looks after its own"
        container.communicate(b"x", timeout=30)


def test_a_record_of_another_boot_names_no_process(tmp_path: Path):
    recorded = {"pid": os.getpid(), "start_time": processes.start_time(os.getpid()), "boot_id": processes.boot_id()}
    (tmp_path / "process.json").write_text(json.dumps(recorded))
    found = process_table.recorded(tmp_path)
    assert found is not None
    assert found.lives()
    (tmp_path / "process.json").write_text(json.dumps({**recorded, "boot_id": "another"}))
    assert process_table.recorded(tmp_path) is None
    for damaged in ({"pid": "x"}, {"start_time": []}):
        (tmp_path / shim.PROCESS_FILE).write_text(json.dumps(recorded | {"boot_id": processes.boot_id()} | damaged))
        assert process_table.recorded(tmp_path) is None
    (tmp_path / "process.json").write_text("")
    assert process_table.recorded(tmp_path) is None


@pytest.mark.parametrize(
    "wrong", [{"pid": 0}, {"pid": -1}, {"pid": 2**40}, {"pid": "1"}, {"pid": None}, {"start_time": []}]
)
def test_a_record_that_no_shim_wrote_names_no_process(tmp_path: Path, wrong: dict[str, object]):
    recorded = {"pid": os.getpid(), "start_time": processes.start_time(os.getpid()), "boot_id": processes.boot_id()}
    (tmp_path / "process.json").write_text(json.dumps({**recorded, **wrong}))
    assert process_table.recorded(tmp_path) is None
