"""The hive's workers, as real processes: spawned, crashed, adopted, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llama_orch.demo_model import expected_completion, write_demo_model
from llama_orch.hive import stop_workers
from llama_orch.hive.workers import ending
from tests.support.gguf.models import not_a_gguf, slow_model, truncated_model
from tests.support.hives import INFERENCE_TOKEN, HiveProcess, a_hive, complete, until


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"file:{write_demo_model(tmp_path_factory.mktemp('demo') / 'demo.gguf')}"


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"file:{slow_model(tmp_path_factory.mktemp('slow') / 'slow.gguf')}"


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[HiveProcess]:
    async with a_hive(tmp_path) as running:
        yield running
    assert running.processes() == {}


async def test_a_worker_serves_the_exact_text_and_stops(hive: HiveProcess, demo: str):
    spawned = await hive.spawn(demo, slots=2, name="letters", origin="inventory")
    assert (spawned["status"], spawned["origin"], spawned["slots"]) == ("loading", "inventory", 2)
    worker = await hive.worker(spawned["id"], status="idle")
    assert await complete(worker["url"], "A", 12) == expected_completion("A", 12)
    assert (await hive.ok("GET", "/health")) == {"status": "healthy", "workers": {"total": 1, "idle": 1, "busy": 0}}
    listed = (await hive.ok("GET", "/api/v1/models"))["models"]
    assert [(m["model_ref"], m["status"], m["workers"]) for m in listed] == [(demo, "ready", [worker["id"]])]

    stopped = await hive.ok("DELETE", f"/api/v1/workers/{worker['id']}")
    assert (stopped["status"], stopped["pid"], stopped["url"]) == ("stopped", None, None)
    assert hive.processes() == {}
    assert not list((hive.state_dir / "workers").iterdir())
    assert (await hive.call("DELETE", f"/api/v1/workers/{worker['id']}"))[0] == 404
    assert (await hive.ok("GET", "/health"))["workers"] == {"total": 0, "idle": 0, "busy": 0}


async def test_the_same_name_and_spec_is_the_same_worker(hive: HiveProcess, demo: str):
    first, second = await asyncio.gather(hive.spawn(demo, name="one"), hive.spawn(demo, name="one"))
    assert first["id"] == second["id"]
    status, body = await hive.call(
        "POST", "/api/v1/workers", json={"model_ref": demo, "backend": "cpu", "name": "one", "slots": 3}
    )
    assert (status, body["error"]["code"], body["error"]["details"]["id"]) == (409, "conflict", first["id"])
    assert len((await hive.ok("GET", "/api/v1/workers"))["workers"]) == 1


async def test_a_killed_worker_is_restarted(hive: HiveProcess, demo: str):
    worker = await hive.idle(demo)
    os.kill(worker["pid"], signal.SIGKILL)
    again = await hive.worker(worker["id"], status="idle", restarts=1)
    assert again["pid"] != worker["pid"]
    assert again["url"] == worker["url"]
    assert again["last_error"]["code"] == "killed"
    assert "signal 9 (SIGKILL)" in again["last_error"]["message"]
    assert await complete(again["url"], "a", 5) == "bcdef"
    assert "llama_orch_hive_worker_restarts_total 1.0" in await _metrics(hive)


async def test_a_worker_outlives_its_shim(hive: HiveProcess, demo: str):
    worker = await hive.idle(demo)
    (shim,) = [found for found in hive.processes()[worker["id"]] if found.is_shim]
    shim.send(signal.SIGKILL)
    assert await complete(worker["url"], "A", 3) == "BCD"
    os.kill(worker["pid"], signal.SIGKILL)
    again = await hive.worker(worker["id"], status="idle", restarts=1)
    assert "nobody saw how" in again["last_error"]["message"]


async def test_crashes_in_a_row_end_in_failed_until_it_is_asked_for_again(hive: HiveProcess, demo: str):
    worker = await hive.idle(demo, name="shaky")
    await hive.end(signal.SIGTERM)
    record = hive.state_dir / "workers" / worker["id"] / "record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "streak": 4}))
    await hive.start()
    os.kill(worker["pid"], signal.SIGSEGV)
    failed = await hive.worker(worker["id"], status="failed")
    assert failed["last_error"]["code"] == "crash_loop"
    assert "SIGSEGV" in failed["last_error"]["message"]
    assert failed["last_error"]["what_to_do"].startswith(ending.ADVICE["SIGSEGV"])
    assert failed["last_error"]["what_to_do"].endswith("; ask for the same name and spec to try again")
    await hive.end(signal.SIGTERM)
    await hive.start()
    assert (await hive.worker(worker["id"]))["status"] == "failed", "a restart of the agent is no request"
    assert (await hive.spawn(demo, name="shaky"))["id"] == worker["id"]
    await hive.worker(worker["id"], status="idle")


async def test_a_stream_and_its_worker_outlive_the_agent(hive: HiveProcess, slow: str):
    worker = await hive.idle(slow)
    body = {"prompt": "A", "max_tokens": 400, "temperature": 0, "stream": True}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {INFERENCE_TOKEN}"}) as session,
        session.post(f"{worker['url']}/v1/completions", json=body) as answer,
    ):
        lines = answer.content
        text = await _next_text(lines)
        assert (await hive.worker(worker["id"], status="busy"))["slots_busy"] == 1
        await hive.end(signal.SIGTERM)
        await hive.start()
        adopted = await hive.worker(worker["id"], status="busy")
        assert adopted["pid"] == worker["pid"]
        async for line in lines:
            text += _text_of(line)
    assert text == expected_completion("A", 400)
    assert (await hive.worker(worker["id"], status="idle"))["restarts"] == 0


async def test_an_agent_that_is_killed_finds_its_workers(hive: HiveProcess, demo: str):
    worker = await hive.idle(demo)
    await hive.end(signal.SIGKILL)
    await hive.start()
    assert (await hive.worker(worker["id"], status="idle"))["pid"] == worker["pid"]
    await hive.ok("DELETE", f"/api/v1/workers/{worker['id']}")
    assert hive.processes() == {}


async def test_an_agent_that_is_killed_while_it_starts_a_worker(hive: HiveProcess, demo: str):
    for delay in (0.0, 0.01, 0.03, 0.1):
        await hive.spawn(demo)
        await asyncio.sleep(delay)
        await hive.end(signal.SIGKILL)
        await hive.start()
    workers = (await hive.ok("GET", "/api/v1/workers"))["workers"]
    assert len(workers) == 4
    for worker in workers:
        pid = (await hive.worker(worker["id"], status="idle"))["pid"]
        assert pid in {found.pid for found in hive.processes()[worker["id"]]}
        assert len(hive.processes()[worker["id"]]) == 2, "the worker and its shim"


async def test_a_worker_that_ends_while_the_agent_is_down_is_reported(hive: HiveProcess, demo: str):
    worker = await hive.idle(demo)
    await hive.end(signal.SIGTERM)
    os.kill(worker["pid"], signal.SIGKILL)
    await hive.start()
    again = await hive.worker(worker["id"], status="idle", restarts=1)
    assert again["pid"] != worker["pid"]
    assert "signal 9 (SIGKILL) while the agent was not running" in again["last_error"]["message"]


async def test_after_a_reboot_the_workers_are_started_again(hive: HiveProcess, demo: str):
    worker = await hive.idle(demo)
    await hive.end(signal.SIGTERM)
    os.kill(worker["pid"], signal.SIGKILL)
    record = hive.state_dir / "workers" / worker["id"] / "record.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot_id": "another-boot"}))
    await hive.start()
    again = await hive.worker(worker["id"], status="idle", restarts=1)
    assert again["last_error"]["code"] == "machine_restarted"


async def test_a_process_without_a_record_is_ended(hive: HiveProcess, demo: str):
    worker = await hive.idle(demo)
    await hive.end(signal.SIGKILL)
    (hive.state_dir / "workers" / worker["id"] / "record.json").unlink()
    await hive.start()

    async def gone() -> bool:
        return hive.processes() == {}

    await until(gone, "the stray worker is ended")
    assert (await hive.ok("GET", "/api/v1/workers"))["workers"] == []


async def test_a_stop_that_the_agent_did_not_survive_is_carried_on(hive: HiveProcess, slow: str):
    worker = await hive.idle(slow)
    answering = asyncio.create_task(complete(worker["url"], "A", 400))
    await hive.worker(worker["id"], status="busy")
    stopping = asyncio.create_task(hive.call("DELETE", f"/api/v1/workers/{worker['id']}"))
    await hive.worker(worker["id"], status="draining")
    await hive.end(signal.SIGKILL)
    await hive.start()

    async def gone() -> bool:
        return (await hive.ok("GET", "/api/v1/workers"))["workers"] == [] and hive.processes() == {}

    await until(gone, "the worker is gone")
    for task in (answering, stopping):
        task.cancel()
    await asyncio.gather(answering, stopping, return_exceptions=True)


async def test_a_drain_outlives_a_restart_of_the_agent(tmp_path: Path, slow: str):
    async with a_hive(tmp_path, drain_timeout_s=120) as hive:
        worker = await hive.idle(slow)
        answering = asyncio.create_task(complete(worker["url"], "A", 200))
        await hive.worker(worker["id"], status="busy")
        path = f"/api/v1/workers/{worker['id']}"
        deleting = [asyncio.create_task(hive.call("DELETE", path)) for _ in range(3)]
        await hive.worker(worker["id"], status="draining")
        await hive.end(signal.SIGTERM)
        for task in deleting:
            status, body = await task
            assert (status, body["error"]["code"]) == (503, "stopping")
            assert "ask again" in body["error"]["message"]
        await hive.start()
        again = await asyncio.gather(*(hive.call("DELETE", path) for _ in range(3)))
        assert await answering == expected_completion("A", 200), "the answer ends as if nothing had happened"
        assert [status for status, _ in again] == [200] * 3
        assert hive.processes() == {}
        assert (await hive.ok("GET", "/api/v1/workers"))["workers"] == []


async def test_a_client_that_leaves_stops_no_deletion(hive: HiveProcess, slow: str):
    worker = await hive.idle(slow)
    answering = asyncio.create_task(complete(worker["url"], "A", 60))
    await hive.worker(worker["id"], status="busy")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(hive.call("DELETE", f"/api/v1/workers/{worker['id']}"), 0.3)
    assert await answering == expected_completion("A", 60), "draining lets a running answer end"

    async def gone() -> bool:
        return (await hive.call("GET", f"/api/v1/workers/{worker['id']}"))[0] == 404

    await until(gone, "the worker is gone")
    assert hive.processes() == {}


@pytest.mark.parametrize(("make", "code"), [(truncated_model, "model_truncated"), (not_a_gguf, "model_unreadable")])
async def test_a_broken_model_fails_with_the_reason(hive: HiveProcess, tmp_path: Path, make: Any, code: str, demo: str):
    worker = await hive.spawn(f"file:{make(tmp_path / 'broken.gguf')}", name="broken")
    assert (worker["status"], worker["last_error"]["code"], worker["restarts"]) == ("failed", code, 0)
    assert (await hive.ok("GET", "/health"))["workers"] == {"total": 1, "idle": 0, "busy": 0}
    write_demo_model(tmp_path / "broken.gguf")
    again = await hive.spawn(f"file:{tmp_path / 'broken.gguf'}", name="broken")
    assert again["id"] == worker["id"]
    await hive.worker(worker["id"], status="idle")


async def test_a_worker_that_failed_leaves_no_zombie(hive: HiveProcess, tmp_path: Path):
    model = write_demo_model(tmp_path / "unknown.gguf")
    # Its header can be read, and llama.cpp knows no such architecture.
    model.write_bytes(model.read_bytes().replace(b"llama", b"lhama"))
    worker = await hive.worker((await hive.spawn(f"file:{model}"))["id"], status="failed")
    assert (worker["last_error"]["code"], worker["started_at"] is not None) == ("model_unreadable", True)

    async def none_left() -> bool:
        assert hive.agent is not None
        return zombies_of(hive.agent.pid) == []

    await until(none_left, "the shim is reaped")


def zombies_of(parent: int) -> list[int]:
    """The children of a process that have ended and that it does not reap."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] == b"Z" and int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


async def test_a_port_in_use_is_not_given(hive: HiveProcess, demo: str):
    first = hive.settings["worker_port_min"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        worker = await hive.idle(demo)
    assert worker["url"] == f"http://127.0.0.1:{int(str(first)) + 1}"


async def test_no_port_left_is_said(tmp_path: Path, demo: str):
    async with a_hive(tmp_path) as hive:
        await hive.end()
        hive.settings["worker_port_max"] = hive.settings["worker_port_min"]
        await hive.start()
        await hive.spawn(demo)
        status, body = await hive.call("POST", "/api/v1/workers", json={"model_ref": demo, "backend": "cpu"})
        assert (status, body["error"]["code"]) == (503, "no_free_port")


async def test_memory_that_is_not_there_is_507_with_both_numbers(hive: HiveProcess, demo: str):
    status, body = await hive.call(
        "POST",
        "/api/v1/workers",
        json={"model_ref": demo, "backend": "cpu", "slots": 256, "ctx_per_slot": 4096},
    )
    assert status == 200, body
    await hive.end()
    hive.settings["reserve_ram_bytes"] = 2**50
    await hive.start()
    status, body = await hive.call("POST", "/api/v1/workers", json={"model_ref": demo, "backend": "cpu"})
    assert (status, body["error"]["code"]) == (507, "does_not_fit")
    assert body["error"]["details"]["needed_bytes"] > body["error"]["details"]["available_bytes"] == 0


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"backend": "cuda"}, 400, "no GPU"),
        ({"backend": "cuda", "device": 1}, 400, "no GPU"),
        ({"backend": "cpu", "device": 1}, 400, "device"),
        ({"backend": "vulkan"}, 400, "backend"),
        ({"slots": 0}, 400, "slots"),
        ({"slots": "4"}, 400, "slots"),
        ({"ctx_per_slot": 100_000}, 400, "ctx_per_slot"),
        ({"name": "Has Spaces"}, 400, "name"),
        ({"name": "{{ 7 * 7 }}"}, 400, "name"),
        ({"colour": "red"}, 400, "colour"),
        ({"model_ref": "file:relative.gguf"}, 400, "model_ref"),
        ({"model_ref": "file:/../etc/passwd.gguf"}, 400, "model_ref"),
        ({"model_ref": "file:/nowhere/at/all.gguf"}, 404, "all.gguf"),
        ({"model_ref": "no reference"}, 400, "model_ref"),
        ({"gpu_layers": 3}, 400, "gpu_layers"),
    ],
)
async def test_a_spawn_that_cannot_be_names_the_field(
    shared_hive: HiveProcess, demo: str, fields: dict[str, object], status: int, named: str
):
    body = {"model_ref": demo, "backend": "cpu", **fields}
    got, answer = await shared_hive.call("POST", "/api/v1/workers", json=body)
    assert got == status, answer
    assert named in answer["error"]["message"]
    assert (await shared_hive.ok("GET", "/api/v1/workers"))["workers"] == []


@pytest.fixture(scope="module")
def shared_hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HiveProcess]:
    running = HiveProcess(tmp_path_factory.mktemp("shared"))
    try:
        asyncio.run(running.start())
        yield running
    finally:
        asyncio.run(running.close())


@pytest.mark.parametrize(
    ("method", "path", "request_", "status"),
    [
        ("GET", "/api/v1/workers/unknown", {}, 404),
        ("DELETE", "/api/v1/workers/unknown", {}, 404),
        ("GET", "/api/v1/models/downloads/unknown", {}, 404),
        ("GET", "/api/v1/models/downloads/unknown/events", {}, 404),
        ("DELETE", "/api/v1/models/downloads/unknown", {}, 404),
        ("DELETE", "/api/v1/models", {}, 400),
        ("DELETE", "/api/v1/models?model_ref=hf:a/b", {}, 404),
        ("DELETE", "/api/v1/models?model_ref=nonsense", {}, 400),
        ("DELETE", "/api/v1/models?model=hf:a/b", {}, 400),
        ("POST", "/api/v1/workers", {"data": "{"}, 400),
        ("POST", "/api/v1/workers", {"data": ""}, 400),
        ("POST", "/api/v1/workers", {"data": "[]"}, 400),
        ("POST", "/api/v1/workers", {"data": b"x" * (1024 * 1024 + 1)}, 413),
        ("POST", "/api/v1/models/download", {"json": {"model_ref": "hf:a"}}, 400),
        ("POST", "/api/v1/models/download", {"json": {"model_ref": "hf:a/b", "filename": "../x.gguf"}}, 400),
        ("POST", "/api/v1/models/download", {"json": {"model_ref": "file:/no/such.gguf"}}, 404),
        ("GET", "/api/v1/workers", {"token": "wrong-token-of-some-length"}, 401),
        ("GET", "/api/v1/devices", {"token": INFERENCE_TOKEN}, 401),
        ("PUT", "/api/v1/workers", {}, 405),
    ],
)
async def test_bad_requests(shared_hive: HiveProcess, method: str, path: str, request_: dict[str, Any], status: int):
    got, body = await shared_hive.call(method, path, **request_)
    assert (got, set(body["error"])) == (status, {"code", "message", "type", "param", "details", "correlation_id"})


async def test_devices_and_the_hive_tell_of_this_machine(shared_hive: HiveProcess):
    devices = await shared_hive.ok("GET", "/api/v1/devices")
    assert devices["memory"]["total_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert devices["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert 0 < devices["disk"]["available_bytes"] < devices["disk"]["total_bytes"]
    if not devices["nvml"]["available"]:
        assert devices["nvml"]["reason"]
        assert devices["gpus"] == []
    info = await shared_hive.ok("GET", "/api/v1/hive")
    assert shared_hive.agent is not None
    assert (info["hive_id"], info["pid"]) == ("tested", shared_hive.agent.pid)


async def test_metrics_have_every_state_with_zeros(shared_hive: HiveProcess):
    text = await _metrics(shared_hive)
    for status in ("downloading", "loading", "idle", "busy", "draining", "stopped", "failed"):
        assert f'llama_orch_hive_workers{{status="{status}"}} 0.0' in text
    for status in ("queued", "downloading", "verifying", "ready", "failed", "cancelled"):
        assert f'llama_orch_hive_downloads{{status="{status}"}} 0.0' in text
    assert "llama_orch_hive_generated_tokens_per_second 0.0" in text
    assert "llama_orch_hive_memory_available_bytes " in text
    assert "llama_orch_hive_http_requests_total{operation=" in text


async def test_two_agents_cannot_share_a_state_folder(shared_hive: HiveProcess):
    other = await asyncio.create_subprocess_exec(*_command(shared_hive, "--port", "1"), stderr=asyncio.subprocess.PIPE)
    _, printed = await asyncio.wait_for(other.communicate(), 30)
    assert other.returncode == 2
    assert b"another hive agent runs" in printed


async def test_stop_workers_ends_all_without_the_agent(hive: HiveProcess, demo: str):
    await hive.idle(demo)
    await hive.end(signal.SIGKILL)
    assert len(hive.processes()) == 1
    assert await stop_workers.stop_all(hive.state_dir, drain_s=0, term_s=10) == []
    assert hive.processes() == {}
    await hive.start()
    assert (await hive.ok("GET", "/api/v1/workers"))["workers"] == []


def _command(hive: HiveProcess, *flags: str) -> list[str]:
    assert hive.agent is not None
    return [*[str(argument) for argument in hive.agent.args], *flags]  # pyright: ignore


async def _metrics(hive: HiveProcess) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{hive.url}/metrics") as answer:
        assert answer.status == 200
        return await answer.text()


async def _next_text(lines: aiohttp.StreamReader) -> str:
    while not (text := _text_of(await asyncio.wait_for(lines.readline(), 30))):
        pass
    return text


def _text_of(line: bytes) -> str:
    data = line.decode().removeprefix("data: ").strip()
    return json.loads(data)["choices"][0]["text"] if data.startswith("{") else ""
