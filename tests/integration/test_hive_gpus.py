"""The hive on a machine with GPUs, as far as NVML tells; the library is a fake one, what reads it is real."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llama_orch.demo_model import write_demo_model
from llama_orch.hive import engine_build
from tests.hives import HiveProcess, a_hive
from tests.nvml import DRIVER_NOT_LOADED, NOT_SUPPORTED, VERSION_MISMATCH, FakeNvml

GIB = 2**30
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the fake NVML: install gcc")


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
async def hive(tmp_path: Path, nvml: FakeNvml) -> AsyncIterator[HiveProcess]:
    nvml.set((24 * GIB, 4 * GIB), (8 * GIB, 0))
    async with a_hive(tmp_path, environment=nvml.environment) as running:
        yield running


async def devices(hive: HiveProcess) -> Any:
    return await hive.ok("GET", "/api/v1/devices")


async def spawn(hive: HiveProcess, tmp_path: Path, **fields: object) -> tuple[int, Any]:
    body = {"model_ref": f"file:{write_demo_model(tmp_path / 'demo.gguf')}", "backend": "cuda", **fields}
    return await hive.call("POST", "/api/v1/workers", json=body)


async def test_each_gpu_is_shown(hive: HiveProcess):
    found = await devices(hive)
    assert found["nvml"] == {"available": True, "reason": None, "driver_version": "580.65.06", "cuda_version": "13.0"}
    first, second = found["gpus"]
    assert first == {
        "index": 0,
        "uuid": "GPU-0",
        "name": "Test GPU",
        "memory_total_bytes": 24 * GIB,
        "memory_used_bytes": 4 * GIB,
        "memory_free_bytes": 20 * GIB,
        "utilization_percent": 42.0,
        "temperature_celsius": 61.0,
        "power_watts": 123.456,
    }
    assert (second["index"], second["memory_free_bytes"]) == (1, 8 * GIB)


async def test_what_a_gpu_does_not_support_is_null(hive: HiveProcess, nvml: FakeNvml):
    nvml.set((0, 0), error=NOT_SUPPORTED)
    (gpu,) = (await devices(hive))["gpus"]
    assert (gpu["name"], gpu["memory_total_bytes"], gpu["temperature_celsius"], gpu["power_watts"]) == (
        "Test GPU",
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("init", "reason"), [(DRIVER_NOT_LOADED, "not loaded"), (VERSION_MISMATCH, "reboot"), (999, "NVML answers")]
)
async def test_a_broken_driver_is_said_and_the_hive_lives(hive: HiveProcess, nvml: FakeNvml, init: int, reason: str):
    nvml.set((GIB, 0), init=init)
    found = await devices(hive)
    assert (found["nvml"]["available"], found["gpus"]) == (False, [])
    assert reason in found["nvml"]["reason"]
    nvml.set((GIB, 0))
    assert (await devices(hive))["nvml"]["available"], "it is asked anew each time"


async def test_a_driver_that_hangs_holds_up_nothing_else(hive: HiveProcess, nvml: FakeNvml):
    nvml.set((GIB, 0), hang=8)
    found = await devices(hive)
    assert (found["nvml"]["available"], found["gpus"]) == (False, [])
    assert "did not answer" in found["nvml"]["reason"]
    assert (await hive.ok("GET", "/health"))["status"] == "healthy"


async def test_metrics_of_gpus_come_and_go_with_them(hive: HiveProcess, nvml: FakeNvml):
    assert 'llama_orch_hive_gpu_temperature_celsius{gpu="1"} 61.0' in await metrics(hive)
    nvml.set((24 * GIB, 0))
    text = await metrics(hive)
    assert "llama_orch_hive_gpus 1.0" in text
    assert 'gpu="1"' not in text


async def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(hive: HiveProcess, tmp_path: Path):
    status, body = await spawn(hive, tmp_path, device=2)
    assert (status, body["error"]["details"]["there"]) == (400, ["cuda:0", "cuda:1", "cpu:0"])


async def test_a_gpu_that_the_build_cannot_use_is_refused_and_never_replaced(hive: HiveProcess, tmp_path: Path):
    if engine_build.has_cuda():
        pytest.skip("this llama-cpp-python was built with CUDA")
    status, body = await spawn(hive, tmp_path)
    assert (status, body["error"]["code"]) == (400, "backend_unavailable")
    assert (await hive.ok("GET", "/api/v1/workers"))["workers"] == []
    assert (await devices(hive))["backends"] == ["cpu"]


async def metrics(hive: HiveProcess) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{hive.url}/metrics") as answer:
        return await answer.text()
