"""A hive on a real NVIDIA GPU: its driver, CUDA, what workers take of it and whether they give it back.

`make test-gpu` on a machine with a GPU and the CUDA wheels. Anywhere else it is skipped, which docs/gpu.md says.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llama_orch.demo_model import DEMO_SENTENCE, write_demo_model
from llama_orch.hive.devices import gpus
from llama_orch.worker.llama import backends
from tests.support.gguf import sparse_models
from tests.support.hives import HiveProcess, a_hive, complete, until

pytestmark = [
    pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU here"),
    pytest.mark.skipif(not backends.cuda_libraries(), reason="the engine here has no CUDA: make wheelhouse-cuda"),
]

MIB = 2**20
CONTEXT = 4096
# What a driver keeps for itself of a GPU comes and goes a little.
SLACK_BYTES = 64 * MIB


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[HiveProcess]:
    async with a_hive(tmp_path, reserve_ram_bytes=0) as running:
        yield running


@pytest.fixture
def demo(tmp_path: Path) -> str:
    return f"file:{write_demo_model(tmp_path / 'demo.gguf')}"


async def devices(hive: HiveProcess) -> Any:
    # One reading serves all who ask within a second.
    await asyncio.sleep(gpus.FRESH_S)
    return await hive.ok("GET", "/api/v1/devices")


async def used(hive: HiveProcess) -> int:
    return (await devices(hive))["gpus"][0]["memory_used_bytes"]


async def given_back(hive: HiveProcess, before: int) -> None:
    async def free() -> bool:
        return await used(hive) <= before + SLACK_BYTES

    await until(free, "the GPU's memory is given back")


async def test_the_driver_tells_what_there_is(hive: HiveProcess):
    found = await devices(hive)
    assert found["nvml"]["available"], found["nvml"]
    assert found["nvml"]["driver_version"] and found["nvml"]["cuda_version"]
    first = found["gpus"][0]
    assert first["uuid"].startswith("GPU-") and first["name"]
    assert first["memory_total_bytes"] >= first["memory_free_bytes"] > 0
    assert first["compute_capability"] and first["pci_address"]
    assert found["conditions"] == []


async def test_the_engine_computes_with_cuda(hive: HiveProcess):
    found: dict[str, Any] = {}

    async def tested() -> bool:
        found.update(await devices(hive))
        return found["engine"]["tested_at"] is not None

    await until(tested, lambda: f"the engine is tested: {found.get('engine')}")
    results = {one["backend"]: one["result"] for one in found["engine"]["libraries"]}
    assert results == {"cpu": "passed", "cuda": "passed"}, found["engine"]
    assert found["backends"] == ["cpu", "cuda"]


async def test_a_worker_answers_from_the_gpu_and_gives_its_memory_back(hive: HiveProcess, demo: str):
    before = await used(hive)
    worker = await hive.idle(demo, backend="cuda", slots=2)
    assert await complete(worker["url"], "say something!", 200) == DEMO_SENTENCE
    found = await devices(hive)
    first = found["gpus"][0]
    assert worker["device_uuids"] == [first["uuid"]]
    if first["processes"]:
        assert [(one["pid"], one["worker_id"]) for one in first["processes"]] == [(worker["pid"], worker["id"])]
    assert first["memory_used_bytes"] > before
    log = (hive.log_dir / f"worker-{worker['id']}.log").read_text(errors="replace")
    assert "not confined" not in log or "Landlock" in log
    await hive.ok("DELETE", f"/api/v1/workers/{worker['id']}")
    await given_back(hive, before)


async def test_a_worker_that_is_killed_leaves_nothing_on_the_gpu_and_comes_back(hive: HiveProcess, demo: str):
    before = await used(hive)
    worker = await hive.idle(demo, backend="cuda")
    os.kill(worker["pid"], signal.SIGKILL)
    again = await hive.worker(worker["id"], status="idle", restarts=1)
    assert again["pid"] != worker["pid"]
    assert await complete(again["url"], "x", 3) == "yza"
    await hive.ok("DELETE", f"/api/v1/workers/{worker['id']}")
    await given_back(hive, before)


async def test_an_agent_that_is_killed_finds_its_worker_on_the_gpu_again(hive: HiveProcess, demo: str):
    worker = await hive.idle(demo, backend="cuda")
    await hive.end(signal.SIGKILL)
    await hive.start()
    again = await hive.worker(worker["id"], status="idle")
    assert again["pid"] == worker["pid"]
    assert await complete(again["url"], "x", 3) == "yza"


SHAPES: list[tuple[str, Callable[[Path], Path], int, int | None]] = [
    ("214 MB, 1 slot", sparse_models.llama, 1, None),
    ("214 MB, 8 slots", sparse_models.llama, 8, None),
    ("half of it", sparse_models.llama, 2, 6),
    ("sliding window", sparse_models.gemma3, 4, None),
    ("experts", sparse_models.qwen3moe, 2, None),
    ("hybrid", sparse_models.qwen35, 2, None),
    (
        "8 billion",
        lambda path: sparse_models.llama(
            path, blocks=32, embedding=4096, heads=32, kv_heads=8, feed_forward=14336, vocabulary=128_256
        ),
        4,
        None,
    ),
]


@pytest.mark.parametrize(("make", "slots", "layers"), [case[1:] for case in SHAPES], ids=[case[0] for case in SHAPES])
async def test_the_estimate_holds_what_a_worker_takes_of_the_gpu(
    hive: HiveProcess, tmp_path: Path, make: Callable[[Path], Path], slots: int, layers: int | None
):
    path = make(tmp_path / "model.gguf")
    before = await used(hive)
    worker = await hive.idle(f"file:{path}", backend="cuda", slots=slots, ctx_per_slot=CONTEXT, gpu_layers=layers)
    await complete(worker["url"], "x" * 900, 4)
    taken = await used(hive) - before
    (estimate,) = worker["device_memory_estimated_bytes"]
    print(f"\nESTIMATE {estimate / MIB:.0f} MiB TAKEN {taken / MIB:.0f} MiB ratio {estimate / taken:.2f}")  # noqa: T201
    assert taken <= estimate + SLACK_BYTES, f"{estimate / MIB:.0f} MiB for {taken / MIB:.0f} MiB"
    assert estimate <= 1.35 * taken, f"{estimate / MIB:.0f} MiB for {taken / MIB:.0f} MiB"


async def test_what_does_not_fit_is_refused_with_numbers(hive: HiveProcess, tmp_path: Path):
    path = sparse_models.llama(tmp_path / "model.gguf", blocks=80, embedding=8192, heads=64, kv_heads=64)
    body = {"model_ref": f"file:{path}", "backend": "cuda", "slots": 64, "ctx_per_slot": 32768}
    status, answer = await hive.call("POST", "/api/v1/workers", json=body)
    assert status == 507, answer
    assert "GiB" in answer["error"]["message"] or "bytes" in str(answer), answer
