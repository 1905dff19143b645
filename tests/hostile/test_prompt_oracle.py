"""Whether one client can tell what another asked: it sends a guess and looks how much of it was there already."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llama_orch.contract.inference import SCOPE_HEADER
from llama_orch.demo_model import write_demo_model
from tests.support.worker_process import AUTH, WorkerProcess

SECRET = "the password of the third shelf is ABCDEFGHIJKLMNOPQRSTUVWXYZ and nobody knows"
VICTIM, ATTACKER, GATEWAY = "127.0.0.2", "127.0.0.3", "127.0.0.4"
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_model(tmp_path_factory.mktemp("model") / "demo.gguf")


@pytest.fixture
async def started(tmp_path: Path, model: Path) -> AsyncIterator[Callable[..., Any]]:
    workers: list[WorkerProcess] = []

    async def start(**order: Any) -> Ask:
        worker = WorkerProcess(tmp_path, model, gateways=[f"{GATEWAY}/32"], **order)
        workers.append(worker)
        await worker.until("idle")

        async def ask(address: str, prompt: str = SECRET, *, chat: bool = False, scope: str | None = None) -> int:
            """How many tokens were there already, for a client of this address."""
            connector = aiohttp.TCPConnector(local_addr=(address, 0))
            headers = AUTH | ({SCOPE_HEADER: scope} if scope else {})
            path, body = "/v1/completions", {"prompt": prompt}
            if chat:
                path, body = "/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}
            async with (
                aiohttp.ClientSession(connector=connector, headers=headers) as session,
                session.post(f"{worker.url}{path}", json={**body, "max_tokens": 2}) as answer,
            ):
                assert answer.status == 200, await answer.text()
                return (await answer.json())["usage"]["prompt_tokens_details"]["cached_tokens"]

        return ask

    yield start
    for worker in workers:
        worker.kill()


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("chat", [False, True])
async def test_nobody_learns_what_another_address_asked(started: Any, slots: int, chat: bool):
    ask = await started(slots=slots)
    assert await ask(VICTIM, chat=chat) == 0
    assert await ask(ATTACKER, chat=chat) == 0
    # Nor by a name of its own choosing, as it is no gateway.
    assert await ask(ATTACKER, chat=chat, scope="victim") == await ask(ATTACKER, chat=chat) > len(SECRET) // 2


async def test_a_gateway_keeps_its_clients_apart_and_each_reuses_its_own(started: Any):
    ask = await started(slots=3)
    assert await ask(GATEWAY, scope="victim") == 0
    assert await ask(GATEWAY, scope="attacker") == 0
    assert await ask(ATTACKER, scope="victim") == 0
    assert await ask(GATEWAY, scope="victim") > len(SECRET) // 2


async def test_sharing_is_for_those_who_asked_for_it(started: Any):
    ask = await started(slots=2, reuse_across_scopes=True)
    assert await ask(VICTIM) == 0
    assert await ask(ATTACKER) > len(SECRET) // 2
