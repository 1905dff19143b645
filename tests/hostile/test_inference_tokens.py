"""What the inference token of one hive opens on another: nothing."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from llama_orch.demo_model import write_demo_model
from llama_orch.web import landlock
from tests.support.hives import INFERENCE_TOKEN, a_hive

FLEET, OTHER = "the-token-of-the-whole-fleet", "the-token-of-another-hive"


async def status(url: str, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{url}/v1/completions", json={"prompt": "A", "max_tokens": 1}) as answer,
    ):
        return answer.status


def shown_of(folder: Path, pid: int) -> bytes:
    """All that a worker's files, environment and arguments show."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"".join(path.read_bytes() for path in (*files, Path(f"/proc/{pid}/environ"), Path(f"/proc/{pid}/cmdline")))


async def test_a_worker_takes_its_hives_token_and_the_fleets(tmp_path: Path):
    fleet = tmp_path / "fleet-token"
    fleet.touch(0o600)
    fleet.write_text(FLEET)
    model = write_demo_model(tmp_path / "demo.gguf")
    async with a_hive(tmp_path, fleet_inference_token_file=str(fleet)) as hive:
        worker = await hive.idle(f"file:{model}")
        found = {token: await status(worker["url"], token) for token in (INFERENCE_TOKEN, FLEET, OTHER)}
        assert found == {INFERENCE_TOKEN: 200, FLEET: 200, OTHER: 401}
        devices = await hive.ok("GET", "/api/v1/devices")
        assert [one["type"] for one in devices["host_conditions"]] == ([] if landlock.abi() else ["workers_unconfined"])
        shown = shown_of(hive.state_dir / "workers" / worker["id"], worker["pid"])
        assert not any(token.encode() in shown for token in found)


async def test_a_hive_whose_workers_are_not_confined_says_so(tmp_path: Path):
    async with a_hive(tmp_path, confine_workers=False) as hive:
        worker = await hive.idle(f"file:{write_demo_model(tmp_path / 'demo.gguf')}")
        (condition,) = (await hive.ok("GET", "/api/v1/devices"))["host_conditions"]
        assert condition["type"] == "workers_unconfined" and "confine_workers" in condition["message"]
        async with aiohttp.ClientSession() as session, session.get(f"{hive.url}/metrics") as answer:
            assert 'llama_orch_hive_host_conditions{type="workers_unconfined"} 1.0' in await answer.text()
        assert await status(worker["url"], INFERENCE_TOKEN) == 200
