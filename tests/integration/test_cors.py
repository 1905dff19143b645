"""A web page asks a real hive and a worker of it, as the hive's settings allow."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from llama_orch.demo_model import DEMO_SENTENCE, write_demo_model
from tests.support.hives import API_TOKEN, INFERENCE_TOKEN, a_hive

CHAT = "https://chat.example.com"
EVIL = "https://evil.example"


async def beforehand(session: aiohttp.ClientSession, url: str, origin: str) -> int:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "a"}
    async with session.options(url, headers=headers) as answer:
        return answer.status


async def test_a_page_of_a_named_origin_asks_hive_and_worker(tmp_path: Path):
    model = write_demo_model(tmp_path / "demo.gguf")
    async with a_hive(tmp_path, cors_origins=[CHAT]) as hive, aiohttp.ClientSession() as session:
        worker = (await hive.idle(f"file:{model}", slots=1))["url"]
        chat = f"{worker}/v1/chat/completions"
        for url in (f"{hive.url}/api/v1/workers", chat):
            assert [await beforehand(session, url, origin) for origin in (CHAT, EVIL)] == [204, 403]
        body = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
        headers = {"Origin": CHAT, "Authorization": f"Bearer {INFERENCE_TOKEN}"}
        async with session.post(chat, json=body, headers=headers) as answer:
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, CHAT)
            assert DEMO_SENTENCE.split()[0] in await answer.text()
        for url, token in ((f"{hive.url}/api/v1/hive", API_TOKEN), (f"{worker}/v1/models", INFERENCE_TOKEN)):
            async with session.get(url, headers={"Origin": CHAT}) as answer:
                assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (401, CHAT)
            async with session.get(url, headers={"Origin": CHAT, "x-api-key": token}) as answer:
                assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, CHAT)
