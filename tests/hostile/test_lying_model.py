"""What a model file can do to the hive that is told to serve it.

Before: 480 kB with a tensor of 60,000 dimensions held the agent for 12 s, and again after each restart.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llama_orch.demo_model import write_demo_model
from tests.support.gguf import lying_models as lies
from tests.support.hives import HiveProcess, a_hive

MIB = 2**20


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[HiveProcess]:
    async with a_hive(tmp_path) as running:
        yield running


def _peak(hive: HiveProcess) -> int:
    """The most memory that the agent ever had."""
    assert hive.agent is not None
    status = Path(f"/proc/{hive.agent.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


async def _longest_silence(hive: HiveProcess, work: asyncio.Task[object]) -> float:
    """The longest that the agent took to answer while something went on."""
    longest = 0.0
    while True:
        began = time.monotonic()
        await hive.ok("GET", "/health")
        longest = max(longest, time.monotonic() - began)
        if work.done():
            return longest
        await asyncio.sleep(0.05)


async def test_a_header_that_lies_is_refused_while_the_agent_goes_on_and_after_its_restart(
    hive: HiveProcess, tmp_path: Path
):
    texts = lies.value(b"k", lies.ARRAY, b"\x08\0\0\0" + (3_500_000).to_bytes(8, "little") + b"\0" * (8 * 3_500_000))
    files = {
        "dimensions": lies.header(tensors=[lies.tensor(b"t", [2**63 - 1] * 60_000)]),
        "entries": lies.header([lies.number(b"key%d" % n, n) for n in range(190_000)]),
        "texts": lies.header([texts]),
        "blocks": lies.llama([lies.number(b"llama.block_count", 2**62)]),
    }
    before = _peak(hive)
    ids: dict[str, str] = {}
    for name, content in files.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content + b"\0" * 4096)
        spawning = asyncio.create_task(hive.spawn(f"file:{path}", name=name))
        assert await _longest_silence(hive, spawning) < 5
        ids[name] = (await spawning)["id"]
    for name in ("dimensions", "blocks"):
        worker = await hive.worker(ids[name], status="failed")
        assert worker["last_error"]["code"] == "model_unreadable", worker
    assert _peak(hive) - before < 60 * MIB
    await hive.end(signal.SIGKILL)
    began = time.monotonic()
    await hive.start()
    assert time.monotonic() - began < 30
    assert (await hive.worker(ids["dimensions"]))["status"] == "failed"
    remembered = json.loads((hive.state_dir / "unreadable-models.json").read_text())
    assert {Path(one["path"]).stem for one in remembered} >= {"dimensions", "blocks"}
    for worker_id in ids.values():
        await hive.ok("DELETE", f"/api/v1/workers/{worker_id}")
    await hive.idle(f"file:{write_demo_model(tmp_path / 'dimensions.gguf')}")


async def test_a_record_made_by_hand_writes_nothing_outside_of_the_cache(hive: HiveProcess, tmp_path: Path):
    await hive.end()
    target = tmp_path / "outside"
    record = {
        "download_id": "d1",
        "model_ref": "hf:a/b",
        "asked_filename": None,
        "status": "downloading",
        "started_at": "2026-01-01T00:00:00Z",
        "model": {
            "repo": "a/b",
            "revision": "main",
            "commit": "c" * 40,
            "filename": "m.gguf",
            "files": [{"name": "m.gguf", "size": 5, "etag": f"../../../../../../../../../..{target}"}],
        },
    }
    (hive.state_dir / "downloads" / "d1.json").write_text(json.dumps(record))
    await hive.start()
    assert (await hive.ok("GET", "/api/v1/models/downloads"))["downloads"] == []
    assert not target.with_name("outside.part").exists()
