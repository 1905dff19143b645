"""The agent's event loop does nothing that waits for a disk or a process, so that nobody who asks waits for that."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

from llama_orch.demo_model import write_demo_model
from tests.support import loop_watch
from tests.support.engine import kept_self_test
from tests.support.gguf.models import not_a_gguf
from tests.support.hives import ROOT, HiveProcess, a_hive
from tests.support.ports import free_port

log = logging.getLogger(__name__)
WORKERS = int(os.environ.get("LOOP_WORKERS", "8"))
CODE = Path(os.environ.get("LOOP_CODE", str(ROOT / "agent")))
# One callback may hold the others up for so long.
BOUND_MS = 50.0


async def _ask_all_the_time(hive: HiveProcess) -> None:
    while True:
        for path in ("/health", "/api/v1/workers", "/api/v1/devices", "/api/v1/models", "/api/v1/hive"):
            await hive.ok("GET", path)
        await asyncio.sleep(0.2)


async def _live_a_life(hive: HiveProcess, tmp_path: Path) -> None:
    """Spawn, name, fail, crash, ask and delete, as users do."""
    demo = f"file:{write_demo_model(tmp_path / 'demo.gguf')}"
    broken = f"file:{not_a_gguf(tmp_path / 'broken.gguf')}"
    await hive.ok("POST", "/api/v1/models/download", json={"model_ref": demo})
    fields = {"slots": 1, "ctx_per_slot": 256, "threads": 1}
    spawned = await asyncio.gather(*(hive.spawn(demo, name=f"w{n}", **fields) for n in range(WORKERS)))
    assert (await hive.spawn(broken, name="broken"))["status"] == "failed"
    workers = [await hive.worker(one["id"], status="idle") for one in spawned]
    os.kill(workers[0]["pid"], signal.SIGKILL)
    await hive.worker(workers[0]["id"], status="idle", restarts=1)
    ids = [one["id"] for one in (await hive.ok("GET", "/api/v1/workers"))["workers"]]
    await asyncio.gather(*(hive.ok("DELETE", f"/api/v1/workers/{worker_id}") for worker_id in ids))
    await hive.ok("DELETE", f"/api/v1/models?model_ref={demo}")


async def test_the_loop_waits_for_no_disk_and_no_process(tmp_path: Path):
    watch = tmp_path / "watch"
    watch.mkdir()
    environment = loop_watch.environment(watch, CODE)
    first = free_port(span=WORKERS + 10)
    ports = {"worker_port_min": first, "worker_port_max": first + WORKERS + 9}
    kept_self_test.give(tmp_path / "state")
    async with a_hive(tmp_path, environment=environment, **ports) as hive:
        loop_watch.begin(watch)
        await asyncio.sleep(0.2)
        asking = asyncio.create_task(_ask_all_the_time(hive))
        await _live_a_life(hive, tmp_path)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        found: dict[str, Any] = await loop_watch.report(watch)
    log.info("%s", json.dumps(found, indent=1))
    assert found["blocking"] == {}
    assert found["callbacks"] > 1000, "it was watched"
    assert found["p999_ms"] < BOUND_MS
