"""Web pages may not ask, also not one whose name a name server made to mean this machine."""

from __future__ import annotations

import aiohttp
import pytest

from llama_orch.web.http import gate
from tests.support.serving import serving
from tests.unit.web.test_app import AUTH, an_app


async def ask(path: str, **headers: str) -> int:
    async with (
        serving(an_app()) as url,
        aiohttp.ClientSession() as session,
        session.get(url + path, headers=headers) as a,
    ):
        return a.status


@pytest.mark.parametrize("path", ["/health", "/metrics"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8081", "Origin": "http://evil.example:8081"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "user@evil.example"},
        {"Host": "["},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
async def test_a_page_of_another_site_is_refused(path: str, headers: dict[str, str]):
    assert await ask(path, **headers) == 403


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8081", "127.0.0.1:8081", "[::1]:8081", "10.0.0.7", "a.localhost", "LocalHost."]
)
async def test_whoever_asks_for_this_machine_is_answered(host: str):
    assert await ask("/health", Host=host) == 200
    assert await ask("/health", Host=host, Origin=f"http://{host}") == 200


async def test_this_machine_may_be_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate.socket, "gethostname", lambda: "Box.example.com")
    assert [await ask("/health", Host=name) for name in ("box", "box.example.com", "other")] == [200, 200, 403]


async def test_what_has_the_token_was_sent_on_purpose():
    assert await ask("/health", Host="queen.example.com", Origin="https://chat.example.com", **AUTH) == 200


async def test_a_page_gets_nothing_done_without_the_token():
    headers = {"Host": "evil.example", "Origin": "http://evil.example", "Content-Type": "text/plain"}
    async with (
        serving(an_app()) as url,
        aiohttp.ClientSession() as session,
        session.post(f"{url}/api/v1/nodes", data=b"{}", headers=headers) as answer,
    ):
        assert answer.status == 401
