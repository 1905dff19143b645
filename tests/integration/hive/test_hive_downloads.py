"""The hive's downloads, from a hub that speaks the real hub's protocol and fails on demand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from llama_orch.demo_model import expected_completion, write_demo_model
from tests.support.gguf.models import split_model, truncated_model
from tests.support.hives import API_TOKEN, HiveProcess, a_hive, complete, until
from tests.support.hub.server import Faults, Hub

REPO = "org/letters-GGUF"
REF = f"hf:{REPO}"
BIG = os.urandom(4_000_000)
CHUNK = 64 * 1024


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_demo_model(tmp_path_factory.mktemp("demo") / "demo.gguf").read_bytes()


@pytest.fixture
async def hive(tmp_path: Path, hub: Hub) -> AsyncIterator[HiveProcess]:
    async with a_hive(tmp_path, hub_endpoint=hub.url) as running:
        yield running

    async def none_left() -> bool:
        return children(running) == []

    await until(none_left, "no download is left")


def children(hive: HiveProcess) -> list[int]:
    """The processes of downloads into this hive's folder that live."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_download = b"llama_orch.hive.models.downloads.child" in (entry / "cmdline").read_bytes()
            if is_download and str(hive.models_dir).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def shown(pid: int) -> bytes:
    """What every process of this user may see of another."""
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


async def ask(hive: HiveProcess, model_ref: str = REF, **fields: object) -> Any:
    return await hive.ok("POST", "/api/v1/models/download", json={"model_ref": model_ref, **fields})


async def refused(hive: HiveProcess, model_ref: str = REF, **fields: object) -> tuple[int, Any]:
    status, body = await hive.call("POST", "/api/v1/models/download", json={"model_ref": model_ref, **fields})
    return status, body["error"]


async def test_a_model_asked_for_many_times_is_downloaded_once_with_progress(hive: HiveProcess, hub: Hub):
    hub.add_repo(REPO, {"big-Q4_K_M.gguf": BIG})
    hub.faults = Faults(bytes_per_second=2_000_000)
    asked = await asyncio.gather(
        ask(hive, origin="inventory"), ask(hive), ask(hive, filename="big-Q4_K_M.gguf"), ask(hive, f"{REF}@main")
    )
    assert len({download["download_id"] for download in asked}) == 1
    download_id = asked[0]["download_id"]
    seen = [event async for event in events(hive, download_id)]
    done = [event["bytes_done"] for event in seen]
    assert done == sorted(done)
    assert len(set(done)) >= 3, "progress is seen while it happens"
    assert any(event["bytes_per_second"] > 500_000 for event in seen)
    assert [*dict.fromkeys(event["status"] for event in seen)][-1] == "ready"
    assert (seen[-1]["percentage"], seen[-1]["bytes_total"], seen[-1]["filename"]) == (
        100.0,
        len(BIG),
        "big-Q4_K_M.gguf",
    )
    assert hub.bytes_sent(f"{REPO}/big-Q4_K_M.gguf") == len(BIG)

    assert (await ask(hive))["download_id"] == download_id
    (model,) = (await hive.ok("GET", "/api/v1/models"))["models"]
    assert (model["status"], model["model_ref"], model["size_bytes"]) == ("ready", REF, len(BIG))
    assert model["sha256"] == hashlib.sha256(BIG).hexdigest()

    query = f"/api/v1/models?model_ref={REF}&filename=big-Q4_K_M.gguf"
    assert (await hive.ok("DELETE", query))["filename"] == "big-Q4_K_M.gguf"
    assert (await hive.call("DELETE", query))[0] == 404
    assert (await hive.ok("GET", "/api/v1/models")) == {"models": []}
    assert not list(hive.models_dir.glob("models--*"))
    assert (await ask(hive))["download_id"] != download_id


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_download_goes_on_after_the_agent_died(hive: HiveProcess, hub: Hub, how: signal.Signals):
    hub.add_repo(REPO, {"big.gguf": BIG})
    hub.faults = Faults(bytes_per_second=1_000_000)
    download = await ask(hive)
    done = await progressed(hive, download["download_id"], 500_000)
    await hive.end(how)

    async def none_left() -> bool:
        return children(hive) == []

    await until(none_left, "the download's process ends with its agent")
    hub.faults = Faults()
    await hive.start()
    again = await hive.download(download["download_id"], "ready")
    assert again["bytes_total"] == len(BIG)
    first = hub.bodies(f"{REPO}/big.gguf")[-1].first_byte
    assert done - CHUNK <= first < len(BIG), "it went on where it was"
    assert f"llama_orch_hive_models_bytes {len(BIG):.0e}" in await metrics(hive)


async def test_a_cut_line_is_taken_up_again(hive: HiveProcess, hub: Hub):
    hub.add_repo(REPO, {"big.gguf": BIG})
    hub.faults = Faults(cut_after=1_000_000, cuts=2)
    assert (await hive.download((await ask(hive))["download_id"], "ready", "failed"))["status"] == "ready"
    assert len(hub.bodies(f"{REPO}/big.gguf")) == 3
    assert all(body.first_byte > 0 for body in hub.bodies(f"{REPO}/big.gguf")[1:])


async def test_what_arrives_changed_is_never_ready(hive: HiveProcess, hub: Hub):
    hub.add_repo(REPO, {"big.gguf": BIG})
    hub.faults = Faults(corrupt=True)
    failed = await hive.download((await ask(hive))["download_id"], "ready", "failed")
    assert (failed["status"], failed["error"]["code"]) == ("failed", "checksum_mismatch")
    assert (await hive.ok("GET", "/api/v1/models"))["models"] == []
    assert [path for path in hive.models_dir.rglob("*") if path.is_file() and path.stat().st_size > 1000] == []
    hub.faults = Faults()
    assert (await hive.download((await ask(hive))["download_id"], "ready", "failed"))["status"] == "ready"


async def test_a_gated_model_says_where_the_token_goes_and_the_token_shows_nowhere(tmp_path: Path):
    token = "hf_a_token_of_the_tests"
    with Hub(separate_storage=True) as hub:
        hub.add_repo(REPO, {"big.gguf": BIG}, gated=True)
        hub.add_token(token)
        async with a_hive(tmp_path, hub_endpoint=hub.url) as hive:
            status, error = await refused(hive)
            assert (status, error["code"]) == (400, "model_gated")
            assert "hub_token_file" in error["message"]
            await hive.end()
            secret = tmp_path / "hub-token"
            secret.write_text(token)
            secret.chmod(0o600)
            hive.settings["hub_token_file"] = str(secret)
            await hive.start()
            hub.faults = Faults(bytes_per_second=1_500_000)
            download = await ask(hive)
            await progressed(hive, download["download_id"], 100_000)
            (child,) = children(hive)
            assert token.encode() not in shown(child)
            await hive.download(download["download_id"], "ready")
            kept = [path for path in (*hive.state_dir.rglob("*"), *hive.log_dir.rglob("*")) if path.is_file()]
            assert not any(token.encode() in path.read_bytes() for path in kept)
            assert token not in hive.log()


async def test_what_is_not_there_is_404_and_says_what_is(hive: HiveProcess, hub: Hub):
    hub.add_repo(REPO, {"m-Q8_0.gguf": b"GGUF", "README.md": b"text"})
    hub.add_repo("org/secret", {"m.gguf": b"GGUF"}, private=True)
    hub.add_repo("org/empty", {"README.md": b"text"})
    status, error = await refused(hive, filename="m-Q4_K_M.gguf")
    assert (status, error["code"], error["details"]["files"]) == (404, "file_not_found", ["m-Q8_0.gguf"])
    assert "m-Q8_0.gguf" in error["message"]
    for ref, code in (
        ("hf:org/secret", "model_not_found"),
        ("hf:org/nowhere", "model_not_found"),
        (f"{REF}@v9", "model_not_found"),
        ("hf:org/empty", "file_not_found"),
    ):
        status, error = await refused(hive, ref)
        assert (status, error["code"]) == (404, code), ref
    assert (await hive.ok("GET", "/api/v1/models/downloads")) == {"downloads": []}


async def test_the_hive_picks_a_quantisation_and_says_which(hive: HiveProcess, hub: Hub):
    hub.add_repo(REPO, {"m-Q8_0.gguf": b"GGUF8", "m-Q5_K_M.gguf": b"GGUF5", "mmproj-F16.gguf": b"GGUF"})
    download = await ask(hive)
    assert download["filename"] == "m-Q5_K_M.gguf"
    assert "there is no Q4_K_M; Q5_K_M is the nearest" in download["chosen_because"]
    other = await ask(hive, filename="m-Q8_0.gguf")
    assert other["download_id"] != download["download_id"]
    await hive.download(download["download_id"], "ready")
    await hive.download(other["download_id"], "ready")
    status, body = await hive.call("DELETE", f"/api/v1/models?model_ref={REF}")
    assert status == 400
    assert set(body["error"]["details"]["files"]) == {"m-Q8_0.gguf", "m-Q5_K_M.gguf"}


async def test_a_model_in_parts_is_one_and_serves(hive: HiveProcess, hub: Hub, tmp_path: Path):
    hub.add_repo(REPO, {path.name: path for path in split_model(tmp_path / "parts")})
    worker = await hive.idle(REF, slots=1)
    assert await complete(worker["url"], "A", 4) == "BCDE"
    (model,) = (await hive.ok("GET", "/api/v1/models"))["models"]
    assert (model["parts"], model["sha256"], model["workers"]) == (2, None, [worker["id"]])


async def test_a_cancelled_download_ends_and_leaves_nothing(hive: HiveProcess, hub: Hub):
    hub.add_repo(REPO, {"big.gguf": BIG})
    hub.faults = Faults(bytes_per_second=500_000)
    download = await ask(hive)
    path = f"/api/v1/models/downloads/{download['download_id']}"
    await progressed(hive, download["download_id"], 100_000)
    status, body = await hive.call("DELETE", f"/api/v1/models?model_ref={REF}")
    assert (status, body["error"]["code"]) == (409, "conflict")
    assert (await hive.ok("DELETE", path))["status"] == "cancelled"
    assert (await hive.ok("DELETE", path))["status"] == "cancelled"
    assert children(hive) == []
    assert not list(hive.models_dir.rglob("*.part"))
    hub.faults = Faults()
    again = await ask(hive)
    assert again["download_id"] != download["download_id"]
    await hive.download(again["download_id"], "ready")


async def test_a_hub_that_falls_silent_is_given_up_and_what_came_is_kept(tmp_path: Path, hub: Hub):
    hub.add_repo(REPO, {"big.gguf": BIG})
    async with a_hive(tmp_path, hub_endpoint=hub.url, download_stall_s=2, download_attempts=1) as hive:
        hub.faults = Faults(stall_after=1_500_000)
        failed = await hive.download((await ask(hive))["download_id"], "failed")
        assert failed["error"]["code"] == "download_stalled"
        (model,) = (await hive.ok("GET", "/api/v1/models"))["models"]
        assert model["status"] == "incomplete"
        hub.faults = Faults()
        await hive.download((await ask(hive))["download_id"], "ready")
        assert hub.bodies(f"{REPO}/big.gguf")[-1].first_byte > 1_000_000


async def test_what_is_here_serves_without_a_question_to_the_hub(hive: HiveProcess, hub: Hub, demo: bytes):
    hub.add_repo(REPO, {"m-Q8_0.gguf": demo, "m-Q4_K_M.gguf": BIG})
    await hive.download((await ask(hive, filename="m-Q8_0.gguf"))["download_id"], "ready")
    questions = len(hub.requests)
    there = await ask(hive)
    assert (there["status"], there["filename"]) == ("ready", "m-Q8_0.gguf")
    worker = await hive.idle(f"{REF}@main")
    assert worker["filename"] == "m-Q8_0.gguf"
    assert len(hub.requests) == questions
    await hive.download((await ask(hive, filename="m-Q4_K_M.gguf"))["download_id"], "ready")
    assert hub.bytes_sent(f"{REPO}/m-Q4_K_M.gguf") == len(BIG), "a file that is named is fetched"


async def test_a_hub_that_cannot_be_reached_is_said(hive: HiveProcess, hub: Hub):
    hub.add_repo(REPO, {"m-Q8_0.gguf": BIG})
    await hive.end()
    hive.settings["hub_endpoint"] = "http://127.0.0.1:9"
    await hive.start()
    status, error = await refused(hive, "hf:org/other")
    assert (status, error["code"]) == (502, "hub_unreachable")


async def test_a_disk_that_is_too_small_is_507_with_both_numbers(tmp_path: Path, hub: Hub):
    hub.add_repo(REPO, {"big.gguf": BIG})
    async with a_hive(tmp_path, hub_endpoint=hub.url, reserve_disk_bytes=2**60) as hive:
        status, error = await refused(hive)
        assert (status, error["code"]) == (507, "disk_full")
        assert error["details"] == {"needed_bytes": len(BIG), "available_bytes": 0}


async def test_the_seeds_spawn_downloads_first_and_answers(hive: HiveProcess, hub: Hub, demo: bytes):
    hub.add_repo(REPO, {"tinyllama.Q4_K_M.gguf": demo})
    hub.faults = Faults(bytes_per_second=700_000)
    spawned = await hive.spawn(REF, device=0, slots=4)
    assert (spawned["status"], spawned["filename"]) == ("downloading", "tinyllama.Q4_K_M.gguf")
    assert (await hive.ok("GET", f"/api/v1/models/downloads/{spawned['download_id']}"))["status"] != "ready"
    worker = await hive.worker(spawned["id"], status="idle")
    assert (worker["slots"], worker["restarts"]) == (4, 0)
    assert await complete(worker["url"], "A", 8) == expected_completion("A", 8)
    other_name = await hive.idle(f"{REF}@main")
    status, body = await hive.call("DELETE", f"/api/v1/models?model_ref={REF}")
    assert (status, set(body["error"]["details"]["workers"])) == (409, {worker["id"], other_name["id"]})
    for worker_id in (worker["id"], other_name["id"]):
        await hive.ok("DELETE", f"/api/v1/workers/{worker_id}")
    await hive.ok("DELETE", f"/api/v1/models?model_ref={REF}")


async def test_a_worker_that_waits_for_its_model_outlives_the_agent(hive: HiveProcess, hub: Hub, demo: bytes):
    hub.add_repo(REPO, {"m.gguf": demo})
    hub.faults = Faults(bytes_per_second=400_000)
    spawned = await hive.spawn(REF, name="patient")
    await progressed(hive, spawned["download_id"], 100_000)
    await hive.end(signal.SIGKILL)
    await hive.start()
    hub.faults = Faults()
    await hive.worker(spawned["id"], status="idle")
    assert hub.bodies(f"{REPO}/m.gguf")[-1].first_byte > 0


async def test_a_worker_deleted_while_it_downloads_ends_its_download(hive: HiveProcess, hub: Hub):
    hub.add_repo(REPO, {"big.gguf": BIG})
    hub.faults = Faults(bytes_per_second=300_000)
    one, two = await hive.spawn(REF), await hive.spawn(REF)
    await progressed(hive, one["download_id"], 100_000)
    assert (await hive.ok("DELETE", f"/api/v1/workers/{one['id']}"))["status"] == "stopped"
    assert (await hive.download(one["download_id"], "downloading"))["status"] == "downloading", "the other waits for it"
    await hive.ok("DELETE", f"/api/v1/workers/{two['id']}")
    assert (await hive.download(one["download_id"], "cancelled"))["status"] == "cancelled"
    kept = await hive.spawn(REF)
    await ask(hive)
    await hive.ok("DELETE", f"/api/v1/workers/{kept['id']}")
    assert (await hive.ok("GET", f"/api/v1/models/downloads/{kept['download_id']}"))["status"] != "cancelled"
    await hive.ok("DELETE", f"/api/v1/models/downloads/{kept['download_id']}")


async def test_a_broken_model_from_the_hub_fails_its_worker(hive: HiveProcess, hub: Hub, tmp_path: Path):
    hub.add_repo(REPO, {"m.gguf": truncated_model(tmp_path / "cut.gguf")})
    worker = await hive.worker((await hive.spawn(REF))["id"], status="failed")
    assert worker["last_error"]["code"] == "model_truncated"
    assert (await hive.ok("GET", "/health"))["status"] == "healthy"


async def test_a_failed_download_fails_its_worker_with_the_reason(hive: HiveProcess, hub: Hub, demo: bytes):
    hub.add_repo(REPO, {"m.gguf": demo})
    hub.faults = Faults(corrupt=True)
    worker = await hive.worker((await hive.spawn(REF, name="again"))["id"], status="failed")
    assert worker["last_error"]["code"] == "checksum_mismatch"
    hub.faults = Faults()
    assert (await hive.spawn(REF, name="again"))["id"] == worker["id"]
    await hive.worker(worker["id"], status="idle")


ODD = "Q8 (neu)/Größe [x], a=b~ & Модель @1.GGUF"


async def test_a_name_of_any_language_comes_serves_and_goes(hive: HiveProcess, hub: Hub, demo: bytes):
    hub.add_repo(REPO, {ODD: demo, "m-draft-Q4_K_M.gguf": b"GGUF"})
    worker = await hive.idle(REF, slots=1)
    assert worker["filename"] == ODD and await complete(worker["url"], "A", 4) == "BCDE"
    (model,) = (await hive.ok("GET", "/api/v1/models"))["models"]
    assert (model["filename"], model["status"], model["workers"]) == (ODD, "ready", [worker["id"]])
    download = (await hive.ok("GET", "/api/v1/models/downloads"))["downloads"][0]
    assert (download["filename"], download["chosen_because"]) == (ODD, "it is the only model in the repository")
    await hive.end(signal.SIGKILL)
    await hive.start()
    assert (await hive.worker(worker["id"], status="idle"))["pid"] == worker["pid"]
    await hive.ok("DELETE", f"/api/v1/workers/{worker['id']}")
    query = f"/api/v1/models?model_ref={quote(REF, safe='')}&filename={quote(ODD, safe='')}"
    assert (await hive.ok("DELETE", query))["filename"] == ODD
    assert not list(hive.models_dir.glob("models--*"))
    assert all(line.isprintable() for line in hive.log().splitlines())


async def test_an_ending_in_capitals_is_listed_and_deleted(hive: HiveProcess, hub: Hub):
    hub.add_repo(REPO, {"X.GGUF": BIG})
    await hive.download((await ask(hive, filename="X.GGUF"))["download_id"], "ready")
    await hive.end()
    await hive.start()
    (model,) = (await hive.ok("GET", "/api/v1/models"))["models"]
    assert (model["filename"], model["status"]) == ("X.GGUF", "ready")
    await hive.ok("DELETE", f"/api/v1/models?model_ref={REF}&filename=X.GGUF")
    assert (await hive.ok("GET", "/api/v1/models"))["models"] == []


async def test_a_file_of_any_name_that_is_there_serves(hive: HiveProcess, tmp_path: Path):
    path = write_demo_model(tmp_path / "Мои модели (1) [neu]" / "größe, a=b~.GGUF")
    worker = await hive.idle(f"file:{path}", slots=1)
    assert await complete(worker["url"], "A", 4) == "BCDE"
    await hive.ok("DELETE", f"/api/v1/workers/{worker['id']}")
    await hive.ok("DELETE", f"/api/v1/models?model_ref={quote(f'file:{path}', safe='')}")


async def test_a_file_that_is_there_needs_no_download(hive: HiveProcess, tmp_path: Path):
    path = write_demo_model(tmp_path / "mine.gguf")
    download = await ask(hive, f"file:{path}")
    assert (download["status"], download["percentage"], download["filename"]) == ("ready", 100.0, "mine.gguf")
    assert (await ask(hive, f"file:{path}"))["download_id"] == download["download_id"]
    await hive.ok("DELETE", f"/api/v1/models?model_ref=file:{path}")
    assert path.exists(), "a user's own file is never deleted"
    assert (await hive.ok("GET", "/api/v1/models"))["models"] == []


async def progressed(hive: HiveProcess, download_id: str, size: int) -> int:
    """How much is there, once it is that much."""
    done = 0

    async def far_enough() -> bool:
        nonlocal done
        done = (await hive.ok("GET", f"/api/v1/models/downloads/{download_id}"))["bytes_done"]
        return done >= size

    await until(far_enough, lambda: f"{size} bytes arrive, not {done}\n{hive.log()}")
    return done


async def events(hive: HiveProcess, download_id: str) -> AsyncIterator[Any]:
    url = f"{hive.url}/api/v1/models/downloads/{download_id}/events"
    headers = {"Authorization": f"Bearer {API_TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as answer:
        assert answer.content_type == "text/event-stream"
        async for line in answer.content:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


async def metrics(hive: HiveProcess) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{hive.url}/metrics") as answer:
        return await answer.text()
