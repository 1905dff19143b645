"""Processes of any user that look like a run's, a package manager's or a worker's: nobody waits for them.

Each script is run as root in a process namespace of its own, where it sees what the test starts and nothing else.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jinja2
import pytest

ROLES = Path(__file__).parents[2] / "roles"
NOBODY = 65534

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can start processes of other users")


def fence(wait_s: int = 1, package_wait_s: int = 60) -> str:
    environment = jinja2.Environment(autoescape=False)
    environment.filters["quote"] = shlex.quote
    text = (ROLES / "common" / "templates" / "fence.sh.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        common_run={"LLAMA_ORCH_RUN": "this-run"},
        inventory_hostname="host",
        common_fence_wait_s=wait_s,
        common_fence_package_wait_s=package_wait_s,
    )


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """Programs before the machine's own: nothing here asks its real dpkg."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "dpkg-query", "echo installed")
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def alone(
    script: str, bin_dir: Path, timeout: float = 40, **variables: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a script of sh with a /proc of its own; what it has started ends with it. Answers the seconds too."""
    began = time.monotonic()
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script],
        env={"PATH": f"{bin_dir}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done, time.monotonic() - began


def a_process(name: str, uid: int, folder: Path, marker: str = "LLAMA_ORCH_RUN_HOST=host LLAMA_ORCH_RUN=old") -> str:
    """A line of sh that starts a process of that name and user, which looks like what an earlier run left."""
    copy = folder / name
    shutil.copy("/bin/sleep", copy)
    folder.chmod(0o755)
    for above in folder.parents[:3]:
        above.chmod(above.stat().st_mode | 0o011)
    return f"env {marker} {as_user(uid)} {copy} 60 & sleep 0.3\n"


def as_user(uid: int) -> str:
    return f"setpriv --reuid={uid} --regid={uid} --clear-groups"


def test_a_strangers_dpkg_is_not_waited_for(bin_dir: Path, tmp_path: Path):
    done, took = alone(a_process("dpkg", NOBODY, tmp_path) + fence(), bin_dir)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended process" not in done.stdout and took < 5


def test_a_process_that_hides_its_owner_is_not_waited_for(bin_dir: Path):
    """The kernel gives the files in /proc of one that is not dumpable to root."""
    code = "import ctypes, time; c = ctypes.CDLL(None); c.prctl(4, 0, 0, 0, 0); c.prctl(15, b'dpkg'); time.sleep(60)"
    hide = f"LLAMA_ORCH_RUN_HOST=host {as_user(NOBODY)} /usr/bin/python3 -c {shlex.quote(code)} & sleep 1\n"
    done, took = alone(hide + "stat -c owner-%u /proc/$!/environ\n" + fence(), bin_dir)
    assert "owner-0" in done.stdout and done.returncode == 0, done.stdout + done.stderr
    assert took < 6


def test_what_an_earlier_run_left_is_still_ended(bin_dir: Path, tmp_path: Path):
    done, _ = alone(a_process("module", 0, tmp_path) + fence(), bin_dir)
    assert done.returncode == 0 and done.stdout.count("ended process") == 1, done.stdout + done.stderr
    done, _ = alone(a_process("module", NOBODY, tmp_path) + fence(), bin_dir, SUDO_UID=str(NOBODY))
    assert done.returncode == 0 and done.stdout.count("ended process") == 1, done.stdout + done.stderr


def test_roots_dpkg_is_left_to_finish(bin_dir: Path, tmp_path: Path):
    done, _ = alone(a_process("dpkg", 0, tmp_path) + fence(1, 10), bin_dir)
    assert done.returncode == 75 and "ended process" not in done.stdout
    assert "still at work" in done.stdout


def test_no_name_in_tmp_can_be_known_before(bin_dir: Path, tmp_path: Path):
    assert "/tmp" not in fence()
    program(bin_dir, "dpkg-query", f"[ -e {tmp_path}/mended ] && echo installed || echo half-configured")
    program(bin_dir, "dpkg", f"touch {tmp_path}/mended")
    done, _ = alone(fence(), bin_dir)
    assert done.returncode == 0 and "finished the package installation" in done.stdout
    (tmp_path / "mended").unlink()
    program(bin_dir, "dpkg", "echo 'error processing package x'; exit 1")
    done, _ = alone(fence(), bin_dir)
    assert done.returncode == 75 and "fails: error processing package x" in done.stdout


def test_a_strangers_worker_is_not_waited_for(bin_dir: Path, tmp_path: Path):
    state = tmp_path / "state"
    (state / "workers" / "w").mkdir(parents=True)
    (state / "workers" / "w" / "spec.json").write_text(json.dumps({"backend": "cuda"}))
    os.chown(state, 4711, 4711)
    code = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (10, 15)]; time.sleep(60)"
    words = f"-c '{code}' -m llama_orch.worker --spec {state}/workers/w/spec.json"
    start = f"{as_user(NOBODY)} /usr/bin/python3 {words} & sleep 1\n"
    end = f"{shlex.quote(sys.executable)} {ROLES}/hive/files/end_workers.py {state} all 1 1\n"
    done, took = alone(start + end, bin_dir)
    assert (done.returncode, done.stdout.split()) == (0, []) and took < 5, done.stderr
    done, _ = alone(start.replace(str(NOBODY), "4711") + end, bin_dir)
    assert done.returncode == 0 and len(done.stdout.split()) == 1, done.stderr
