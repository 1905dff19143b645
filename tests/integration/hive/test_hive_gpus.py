"""The hive on a machine with GPUs, as far as NVML tells; the library is a fake one, what reads it is real."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llama_orch.base.processes import start_time
from llama_orch.demo_model import write_demo_model
from llama_orch.hive.devices import engine_build, gpus
from llama_orch.hive.devices.gpus import Gpus
from llama_orch.hive.models.memory import CUDA_CONTEXT_BYTES
from tests.support.hives import HiveProcess, a_hive, until
from tests.support.nvml import GIB, GPU_IS_LOST, VERSION_MISMATCH, FakeNvml, error, gpu, states

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the fake NVML: install gcc")


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
async def hive(tmp_path: Path, nvml: FakeNvml) -> AsyncIterator[HiveProcess]:
    nvml.set(gpu(0), gpu(1, total=8 * GIB, used=0))
    async with a_hive(tmp_path, environment=nvml.environment) as running:
        yield running


@pytest.fixture
async def reader(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gpus]:
    for name, value in nvml.environment.items():
        monkeypatch.setenv(name, value)
    reader = Gpus()
    yield reader
    await reader.close()


async def devices(hive: HiveProcess) -> Any:
    # One reading serves all who ask within a second.
    await asyncio.sleep(gpus.FRESH_S)
    return await hive.ok("GET", "/api/v1/devices")


async def metrics(hive: HiveProcess) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{hive.url}/metrics") as answer:
        return await answer.text()


async def spawn(hive: HiveProcess, tmp_path: Path, **fields: object) -> tuple[int, Any]:
    body = {"model_ref": f"file:{write_demo_model(tmp_path / 'demo.gguf')}", "backend": "cuda", **fields}
    return await hive.call("POST", "/api/v1/workers", json=body)


async def test_each_gpu_is_shown(hive: HiveProcess):
    found = await devices(hive)
    assert found["nvml"] == {
        "available": True,
        "fault": None,
        "reason": None,
        "driver_version": "580.65.06",
        "cuda_version": "13.0",
    }
    first, second = found["gpus"]
    assert first == {
        "index": 0,
        "uuid": "GPU-0",
        "name": "Test-GPU",
        "memory_total_bytes": 24 * GIB,
        "memory_used_bytes": 4 * GIB,
        "memory_free_bytes": 20 * GIB,
        "utilization_percent": 42.0,
        "temperature_celsius": 61.0,
        "slowdown_celsius": 95.0,
        "power_watts": 123.456,
        "power_limit_watts": 450.0,
        "graphics_clock_mhz": 2520,
        "memory_clock_mhz": 10501,
        "slowdowns": [],
        "pci_address": "00000000:01:00.0",
        "compute_capability": "8.9",
        "ecc": {
            "corrected": 0,
            "uncorrected": 0,
            "corrected_ever": 2,
            "uncorrected_ever": 0,
            "remap_pending": False,
            "remap_failed": False,
        },
        "mig_enabled": None,
        "mig_devices": [],
        "processes": [],
        "shares_memory": False,
        "problem": None,
    }
    assert (second["index"], second["memory_free_bytes"]) == (1, 8 * GIB)
    assert found["conditions"] == []


@pytest.fixture(scope="module")
def healthy(nvml: FakeNvml, tmp_path_factory: pytest.TempPathFactory) -> states.Seen:
    return asyncio.run(states.observe(nvml, states.STATES["healthy"], tmp_path_factory.mktemp("healthy")))


@pytest.mark.parametrize("name", states.STATES)
async def test_what_is_said_in_each_state_is_what_the_docs_say(
    nvml: FakeNvml, healthy: states.Seen, tmp_path: Path, name: str
):
    seen = await states.observe(nvml, states.STATES[name], tmp_path)
    assert states.row(name, seen, healthy) == states.rows_of_docs()[name], (
        "where this is right, `python -m tests.support.nvml.states` writes the table of docs/gpu.md anew"
    )


def test_the_docs_know_these_states_and_no_other():
    assert list(states.rows_of_docs()) == list(states.STATES)


@pytest.mark.parametrize("name", states.STATES)
async def test_when_it_is_over_so_is_what_was_said_of_it(reader: Gpus, nvml: FakeNvml, name: str):
    state = states.STATES[name]
    told: dict[str, Any] = state.nvml | {"hang": 0}
    nvml.set(*([gpu(0, **state.gpu)] if state.gpu is not None else []), **told)
    reading = await reader.read(now=True)
    assert all(condition.what_to_do and condition.remedy for condition in reading.conditions)
    nvml.set(gpu(0))
    again = await reader.read(now=True)
    assert again.status.available
    # Only an Xid stays: somebody must look.
    assert {str(condition.type) for condition in again.conditions} <= {"xid"}


async def test_what_shares_a_gpu_is_told_in_full(reader: Gpus, nvml: FakeNvml):
    nvml.set(gpu(0, process=4711, **(states.STATES["divided up"].gpu or {})))
    (found,) = (await reader.read(now=True)).model_dump(mode="json")["gpus"]
    assert found["mig_enabled"] is True
    assert found["mig_devices"] == [
        {"uuid": "MIG-0", "name": "1g.10gb", "memory_total_bytes": 10 * GIB, "memory_used_bytes": GIB}
    ]
    assert found["processes"] == [{"pid": 4711, "memory_bytes": GIB, "worker_id": None}]


async def test_a_gpu_that_was_there_is_missed(reader: Gpus, nvml: FakeNvml):
    nvml.set(gpu(0), gpu(1))
    await reader.read(now=True)
    nvml.set(gpu(1))
    (condition,) = (await reader.read(now=True)).conditions
    assert (condition.type, condition.uuid, condition.cordons) == ("gpu_missing", "GPU-0", True)
    nvml.set(gpu(0, handle=error(GPU_IS_LOST)), gpu(1))
    reading = await reader.read(now=True)
    assert [found.uuid for found in reading.gpus] == ["GPU-0", "GPU-1"], "known by what it was called before"
    assert [condition.type for condition in reading.conditions] == ["gpu_lost"]


async def test_without_the_library_nothing_is_wrong_and_it_is_found_when_it_comes(
    tmp_path: Path, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("FAKE_NVML", nvml.environment["FAKE_NVML"])
    nvml.set(gpu(0))
    reader = Gpus()
    try:
        reading = await reader.read(now=True)
        assert (reading.status.fault, reading.conditions) == ("library_missing", [])
        shutil.copy(nvml.library, tmp_path)
        assert not (await reader.read()).status.available, "it is not looked for at every question"
        assert (await reader.read(now=True)).status.available
    finally:
        await reader.close()


async def test_the_process_that_reads_may_be_killed(reader: Gpus, nvml: FakeNvml):
    nvml.set(gpu(0))
    await reader.read(now=True)
    (child,) = children_of(os.getpid())
    os.kill(child, signal.SIGKILL)
    assert (await reader.read(now=True)).status.available


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"nvml_child" in (entry / "cmdline").read_bytes():
                    parent = re.search(r"^PPid:\s+(\d+)", (entry / "status").read_text(), re.MULTILINE)
                    found += [int(entry.name)] if parent and int(parent[1]) == pid else []
            except OSError:
                continue
    return found


async def test_who_asks_and_leaves_takes_no_answer_from_the_next(reader: Gpus, nvml: FakeNvml):
    nvml.set(gpu(0, temperature=40))
    await reader.read(now=True)
    asked = asyncio.create_task(reader.read(now=True))
    await asyncio.sleep(0)
    asked.cancel()
    nvml.set(gpu(0, temperature=50))
    assert (await reader.read(now=True)).gpus[0].temperature_celsius == 50


async def test_a_driver_that_hangs_holds_up_nothing_else(hive: HiveProcess, nvml: FakeNvml):
    await devices(hive)
    nvml.set(gpu(0), hang=20)
    found = await devices(hive)
    assert (found["nvml"]["available"], found["gpus"]) == (False, [])
    assert "did not answer" in found["nvml"]["reason"]
    assert [condition["type"] for condition in found["conditions"]] == ["driver_silent"]
    assert (await hive.ok("GET", "/health"))["status"] == "healthy"
    nvml.set(gpu(0))

    async def answers() -> bool:
        return (await devices(hive))["nvml"]["available"]

    await until(answers, "the question that hangs is given up, and the next one answered")


async def test_who_asks_a_driver_that_hangs_hears_so_in_good_time(
    reader: Gpus, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
):
    nvml.set(gpu(0))
    await reader.read(now=True)
    monkeypatch.setattr(gpus, "FRESH_S", 0.0)
    nvml.set(gpu(0), hang=20)
    for patience in (gpus.PATIENCE_S, 0.0):
        began = time.monotonic()
        reading = await reader.read()
        assert time.monotonic() - began < patience + 1
        assert reading.status.fault == "no_answer"
        assert [condition.type for condition in reading.conditions] == ["driver_silent"]


async def test_metrics_of_gpus_come_and_go_with_them(hive: HiveProcess, nvml: FakeNvml):
    nvml.set(gpu(0), gpu(1, uncorrected=2, reasons=0x44), xids=[(1, 48)])
    await devices(hive)
    await asyncio.sleep(gpus.FRESH_S + 0.2)
    text = await metrics(hive)
    for line in (
        'gpu_temperature_celsius{gpu="1"} 61.0',
        'gpu_ecc_uncorrected_errors{gpu="1"} 2.0',
        'gpu_slowdown{gpu="1",reason="hardware_thermal"} 1.0',
        'gpu_last_xid{gpu="1"} 48.0',
        'gpu_info{gpu="0",name="Test-GPU",pci_address="00000000:01:00.0",uuid="GPU-0"} 1.0',
        'gpu_conditions{type="ecc_uncorrected"} 1.0',
        'gpu_conditions{type="gpu_lost"} 0.0',
    ):
        assert f"llama_orch_hive_{line}" in text
    nvml.set(gpu(0))
    await asyncio.sleep(gpus.FRESH_S)
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


async def test_a_gpu_with_something_wrong_is_refused_alone_and_among_several(
    hive: HiveProcess, nvml: FakeNvml, tmp_path: Path
):
    nvml.set(gpu(0), gpu(1, uncorrected=1))
    await devices(hive)
    for fields in ({"device": 1}, {"devices": [0, 1], "tensor_split": [3, 1]}):
        status, body = await spawn(hive, tmp_path, **fields)
        assert (status, body["error"]["code"]) == (409, "device_cordoned")
        assert body["error"]["details"] == {"conditions": ["ecc_uncorrected"]}
        assert "GPU 1 takes no new workers: GPU 1 (Test-GPU): 1 uncorrectable" in body["error"]["message"]
    assert (await hive.ok("GET", "/api/v1/workers"))["workers"] == []


async def test_a_driver_that_does_not_answer_is_what_a_refusal_says(hive: HiveProcess, nvml: FakeNvml, tmp_path: Path):
    nvml.set(init=VERSION_MISMATCH)
    await devices(hive)
    status, body = await spawn(hive, tmp_path)
    assert (status, body["error"]["code"]) == (409, "device_cordoned")
    assert body["error"]["details"] == {"conditions": ["driver_mismatch"]}


@pytest.mark.parametrize("fields", [{"device": 1}, {"devices": [0, 1]}, {"devices": [1, 0], "tensor_split": [1, 3]}])
async def test_a_gpu_that_is_full_is_refused_with_the_numbers(
    hive: HiveProcess, nvml: FakeNvml, tmp_path: Path, fields: dict[str, object]
):
    # Filled since the hive last looked: it looks again, at the last moment.
    await devices(hive)
    nvml.set(gpu(0), gpu(1, total=8 * GIB, used=8 * GIB - GIB - 1000))
    status, body = await spawn(hive, tmp_path, **fields)
    assert (status, body["error"]["code"]) == (507, "does_not_fit")
    details = body["error"]["details"]
    # The hive leaves 1 GiB free.
    assert (details["device"], details["available_bytes"]) == (1, 1000)
    assert details["needed_bytes"] > CUDA_CONTEXT_BYTES
    assert "1000 bytes of memory of GPU 1 may be used" in body["error"]["message"]
    assert (await hive.ok("GET", "/api/v1/workers"))["workers"] == []


async def test_the_process_that_reads_ends_with_the_agent(tmp_path: Path, nvml: FakeNvml):
    nvml.set(gpu(0))
    async with a_hive(tmp_path, environment=nvml.environment) as running:
        await devices(running)
        assert running.agent is not None
        (child,) = children_of(running.agent.pid)

    async def gone() -> bool:
        return start_time(child) is None

    await until(gone, "the process is gone")
