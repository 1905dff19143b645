"""Files of a hive that were damaged, and processes where one is expected: what serves goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_orch.demo_model import expected_completion, write_demo_model
from llama_orch.hive import shim
from llama_orch.hive.workers.records import RECORD_FILE
from tests.support.gguf.models import not_a_gguf
from tests.support.hives import ROOT, a_hive, complete, until

DAMAGES = {"emptied": b"", "truncated": b'{"id": "', "garbled": b"\x00\xff" * 300}


@pytest.fixture
def demo(tmp_path: Path) -> str:
    return f"file:{write_demo_model(tmp_path / 'demo.gguf')}"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("files", [(RECORD_FILE,), (shim.PROCESS_FILE,), (RECORD_FILE, shim.PROCESS_FILE)])
async def test_a_damaged_file_ends_no_worker_that_serves(
    tmp_path: Path, demo: str, files: tuple[str, ...], damage: bytes
):
    async with a_hive(tmp_path) as hive:
        before = await hive.idle(demo, name="chat")
        await hive.end(signal.SIGKILL)
        for name in files:
            (hive.state_dir / "workers" / before["id"] / name).write_bytes(damage)
        await hive.start()
        after = await hive.worker(before["id"], status="idle")
        same = ("id", "name", "pid", "url", "restarts", "slots", "model_ref", "memory_estimated_bytes", "started_at")
        assert {key: after[key] for key in same} == {key: before[key] for key in same}
        assert (after["last_error"] or {}).get("code") == ("record_damaged" if RECORD_FILE in files else None)
        assert await complete(after["url"], "A", 20) == expected_completion("A", 20)
        assert (await hive.spawn(demo, name="chat"))["id"] == before["id"]
        await hive.ok("DELETE", f"/api/v1/workers/{before['id']}")
        assert hive.processes() == {}


async def test_a_worker_of_which_nothing_can_be_read_is_left_alone(tmp_path: Path, demo: str):
    async with a_hive(tmp_path) as hive:
        worker = await hive.idle(demo)
        await hive.end(signal.SIGKILL)
        for name in (RECORD_FILE, "spec.json"):
            (hive.state_dir / "workers" / worker["id"] / name).write_bytes(b"")
        await hive.start()
        assert (await hive.ok("GET", "/api/v1/workers"))["workers"] == []
        assert await complete(worker["url"], "A", 20) == expected_completion("A", 20)
        assert "a process of it is not ended" in hive.log()


async def test_a_second_process_of_a_worker_is_ended(tmp_path: Path, demo: str):
    async with a_hive(tmp_path) as hive:
        worker = await hive.idle(demo)
        spec = str(hive.state_dir / "workers" / worker["id"] / "spec.json")
        sleeps = [sys.executable, "-c", "import time; time.sleep(300)", "llama_orch.worker", "--spec", spec]
        with subprocess.Popen(sleeps) as second:  # noqa: ASYNC220  it takes a millisecond
            try:

                async def ended() -> bool:
                    return second.poll() is not None

                await until(ended, "the second process ends")
                assert second.returncode == -signal.SIGKILL
            finally:
                second.kill()
        assert (await hive.worker(worker["id"], status="idle"))["pid"] == worker["pid"]


# Read by each Python that starts: the first shim needs longer than it is waited for.
_SLOW_SHIM = """
import pathlib, sys, time
if "llama_orch.hive.shim" in sys.orig_argv:
    try:
        pathlib.Path(__file__).with_name("was-slow").touch(exist_ok=False)
    except FileExistsError:
        pass
    else:
        time.sleep(60)
"""


async def test_a_slow_shim_gives_no_orphan(tmp_path: Path, demo: str):
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(_SLOW_SHIM)
    path = f"{tmp_path / 'slow'}:{ROOT / 'agent'}"
    async with a_hive(tmp_path, environment={"PYTHONPATH": path}) as hive:
        worker = await hive.idle(demo)
        assert (tmp_path / "slow" / "was-slow").exists()
        assert worker["restarts"] == 1
        (processes,) = hive.processes().values()
        assert sorted(one.is_shim for one in processes) == [False, True]


async def test_failed_workers_hold_no_port_and_are_not_kept_without_end(tmp_path: Path, demo: str):
    async with a_hive(tmp_path) as hive:
        broken = f"file:{not_a_gguf(tmp_path / 'broken.gguf')}"
        for _ in range(25):
            assert (await hive.spawn(broken))["status"] == "failed"
        await hive.spawn(broken, name="named")
        workers: list[dict[str, Any]] = (await hive.ok("GET", "/api/v1/workers"))["workers"]
        assert len(workers) <= 22
        assert "named" in {worker["name"] for worker in workers}
        await hive.idle(demo)
