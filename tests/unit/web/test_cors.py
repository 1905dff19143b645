"""Web pages of origins that the settings name, as a browser asks for them: beforehand, and then with the token."""

from __future__ import annotations

import aiohttp
import pytest
from multidict import CIMultiDictProxy
from pydantic import TypeAdapter, ValidationError

from llama_orch.contract.patterns import WebOrigin
from llama_orch.hive.settings import HiveSettings
from llama_orch.queen.settings import QueenSettings
from tests.support.serving import serving
from tests.unit.web.test_app import AUTH, an_app

CHAT = "https://chat.example.com"
EVIL = "https://evil.example"
WANTED = "authorization,content-type,x-stainless-os,x-stainless-retry-count"
HEADERS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": WANTED}


async def ask(method: str, path: str, origins: list[str], **headers: str) -> tuple[int, CIMultiDictProxy[str], bytes]:
    async with (
        serving(an_app(cors_origins=tuple(origins))) as url,
        aiohttp.ClientSession() as session,
        session.request(method, url + path, headers=headers) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


async def beforehand(origin: str, origins: list[str], path: str = "/api/v1/nodes", **more: str):
    return await ask("OPTIONS", path, origins, **{"Origin": origin, **HEADERS, **more})


@pytest.mark.parametrize("path", ["/api/v1/nodes", "/api/v1/nodes/", "/health", "/nowhere"])
async def test_a_browser_is_told_beforehand_without_a_token_and_learns_no_path(path: str):
    status, headers, body = await beforehand(CHAT, [CHAT], path)
    assert (status, body) == (204, b"")
    assert headers["Access-Control-Allow-Origin"] == CHAT
    assert headers["Access-Control-Allow-Headers"] == WANTED
    assert {"GET", "HEAD", "POST", "DELETE"} == set(headers["Access-Control-Allow-Methods"].split(", "))
    assert "Origin" in headers.getall("Vary")
    assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize("origin", [EVIL, "http://chat.example.com", f"{CHAT}.evil.example", f"{CHAT}:8443", "null"])
async def test_other_origins_are_refused_with_the_setting_to_change(origin: str):
    status, headers, body = await beforehand(origin, [CHAT])
    assert status == 403 and b"cors_origins" in body
    assert "Access-Control-Allow-Origin" not in headers


async def test_by_default_no_page_may_ask():
    assert (await beforehand(CHAT, []))[0] == 403
    status, headers, _ = await ask("GET", "/api/v1/nodes/x", [], Origin=CHAT, **AUTH)
    assert status == 404 and "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("wanted", ["x\t", "a, b;", "ä", "a" * 65, ",".join("a" * 65)])
async def test_only_names_of_headers_are_repeated(wanted: str):
    status, headers, _ = await beforehand(CHAT, [CHAT], **{"Access-Control-Request-Headers": wanted})
    assert status == 204 and "Access-Control-Allow-Headers" not in headers


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [("/api/v1/nodes/x", AUTH, 404), ("/api/v1/nodes/x", {}, 401), ("/health", {}, 200), ("/openapi.json", AUTH, 200)],
    ids=str,
)
async def test_a_page_may_read_answers_and_refusals(path: str, more: dict[str, str], status: int):
    answered, headers, _ = await ask("GET", path, ["http://localhost:3000", CHAT], Origin=CHAT, **more)
    assert (answered, headers["Access-Control-Allow-Origin"]) == (status, CHAT)
    assert "X-Correlation-Id" in headers["Access-Control-Expose-Headers"]


async def test_every_page_may_ask_with_the_token_but_none_without():
    status, headers, _ = await beforehand(EVIL, ["*"])
    assert (status, headers["Access-Control-Allow-Origin"]) == (204, "*")
    status, headers, _ = await ask("GET", "/api/v1/nodes/x", ["*"], Origin="null", **AUTH)
    assert (status, headers["Access-Control-Allow-Origin"]) == (404, "*")
    assert (await ask("GET", "/health", ["*"], Origin=EVIL))[0] == 403
    assert (await ask("GET", "/health", ["*", CHAT], Origin=CHAT))[0] == 200


async def test_what_a_browser_does_not_send_is_no_question():
    assert (await ask("OPTIONS", "/api/v1/nodes", [CHAT], Origin=CHAT))[0] == 401
    assert (await ask("OPTIONS", "/api/v1/nodes", [CHAT], **{"Access-Control-Request-Method": "GET"}))[0] == 401


async def test_a_name_that_was_made_to_mean_this_machine_stays_refused():
    assert (await ask("GET", "/health", [CHAT], Origin=CHAT, Host="evil.example"))[0] == 403


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("*", "*"),
        ("https://Chat.Example.com/", CHAT),
        ("https://chat.example.com:443", CHAT),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(given: str, kept: str):
    assert TypeAdapter(WebOrigin).validate_python(given) == kept


@pytest.mark.parametrize(
    "given",
    ["", "null", "chat.example.com", "https://chat.example.com/app", "https://*.example.com", "https://a b", "https://",
     "https://a\n", "https://user@chat.example.com", "https://a, https://b"],
)  # fmt: skip
def test_what_is_no_origin_says_what_one_is(given: str):
    with pytest.raises(ValidationError, match=r"expected '\*' or an origin such as https://chat\.example\.com"):
        TypeAdapter(WebOrigin).validate_python(given)


def test_settings_name_origins_in_a_row():
    given = {"cors_origins": "https://chat.example.com/, http://localhost:3000"}
    wanted = [CHAT, "http://localhost:3000"]
    assert HiveSettings.model_validate(given).cors_origins == wanted
    assert QueenSettings.model_validate(given).cors_origins == wanted
