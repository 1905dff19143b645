from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from sanic import Request

from llama_orch.base.tokens import Token
from llama_orch.contract import operations as ops
from llama_orch.contract.common import QueenHealth
from llama_orch.contract.errors import NotFound
from llama_orch.contract.operations import METRICS, OPENAPI, PROOF
from llama_orch.contract.proof import Proof
from llama_orch.contract.queen import JobEvent, Node, NodeCreate
from llama_orch.web import openapi, principal
from llama_orch.web.app import Routes, create_app
from llama_orch.web.events import EventStream
from llama_orch.web.rendered import Rendered
from tests.support.serving import serving

TOKEN = "a-token-of-enough-length"


async def forever(ended: asyncio.Event) -> AsyncIterator[JobEvent | str]:
    """A source of events that says one thing and stays; `ended` is set when it is closed."""
    try:
        yield "first"
        await asyncio.Event().wait()
    finally:
        ended.set()


def an_app(*, events: AsyncIterator[JobEvent | str] | None = None, cors_origins: tuple[str, ...] = ()):
    served = (ops.QUEEN_HEALTH, ops.CREATE_NODE, ops.GET_NODE, ops.JOB_EVENTS, METRICS, OPENAPI, PROOF)
    routes = Routes(served)

    @routes.handle(ops.QUEEN_HEALTH)
    async def health(_: Request) -> QueenHealth:
        return QueenHealth(version="0.1.0")

    @routes.handle(ops.CREATE_NODE)
    async def create(_: Request, body: NodeCreate) -> QueenHealth:
        return QueenHealth(version=body.node_name)

    @routes.handle(ops.GET_NODE)
    async def get(_: Request, node_name: str) -> Node:
        if node_name == "boom":
            raise RuntimeError("a secret path /etc/llama-orch")
        raise NotFound(f"there is no node {node_name}")

    @routes.handle(ops.JOB_EVENTS)
    async def job_events(_: Request, job_id: str) -> EventStream:
        assert events is not None
        return EventStream(events)

    return create_app(
        "test", "queen", routes, token=Token(TOKEN), registry=CollectorRegistry(), cors_origins=cors_origins
    )


AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
async def http():
    async with serving(an_app()) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        yield session


async def test_health_is_open_and_exact(http: aiohttp.ClientSession):
    async with http.get("/health", headers={"Authorization": ""}) as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "healthy", "version": "0.1.0"})


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong-token-of-length", f"Basic {TOKEN}", TOKEN])
async def test_a_missing_or_wrong_token_is_401(http: aiohttp.ClientSession, header: str | None):
    async with http.get("/api/v1/nodes/x", headers={"Authorization": header or ""}) as answer:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await answer.json())["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("name", ["x-api-key", "Api-Key", "X-API-KEY"])
async def test_other_headers_show_the_token_as_well(http: aiohttp.ClientSession, name: str):
    for authorization in ("", "Basic dXNlcjpwYXNz", f"Bearer {TOKEN}"):
        async with http.get("/api/v1/nodes/x", headers={"Authorization": authorization, name: TOKEN}) as answer:
            assert answer.status == 404
    async with http.get("/api/v1/nodes/x", headers={"Authorization": "", name: f"Bearer {TOKEN}"}) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {TOKEN}"), ("x-api-key", "another-token-of-length")],
        [("x-api-key", TOKEN), ("api-key", "another-token-of-length")],
        [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer another-token-of-length")],
        [("Authorization", "Bearer another-token-of-length"), ("Authorization", f"Bearer {TOKEN}")],
        [("x-api-key", TOKEN), ("x-api-key", "another-token-of-length")],
    ],
)
async def test_different_tokens_are_refused(headers: list[tuple[str, str]]):
    async with serving(an_app()) as url, aiohttp.ClientSession(url) as session:
        async with session.get("/api/v1/nodes/x", headers=headers) as answer:
            assert answer.status == 401 and "different tokens" in (await answer.json())["error"]["message"]
        async with session.get("/health", headers=headers) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/api/v1/proof", "/openapi.json", "/api/v1/nodes/x"])
async def test_a_slash_behind_a_path_changes_nothing(http: aiohttp.ClientSession, path: str):
    for authorization in ("", AUTH["Authorization"]):
        seen: list[tuple[int, str]] = []
        for asked in (path, f"{path}/"):
            async with http.get(asked, headers={"Authorization": authorization}) as answer:
                seen.append((answer.status, answer.headers["Content-Type"]))
        assert seen[0] == seen[1]
    async with http.get("/health//", headers={"Authorization": ""}) as answer:
        assert answer.status == 401


async def test_a_body_may_go_to_a_path_with_a_slash(http: aiohttp.ClientSession):
    async with http.post("/api/v1/nodes/", json={"node_name": "a", "ssh_host": "h"}) as answer:
        assert (answer.status, (await answer.json())["version"]) == (200, "a")


@pytest.mark.parametrize(
    ("path", "token"), [("/health", ""), ("/metrics", ""), ("/openapi.json", TOKEN), ("/api/v1/nodes/x", TOKEN)]
)
async def test_the_head_of_whatever_can_be_read(http: aiohttp.ClientSession, path: str, token: str):
    async with http.get(path, headers={"Authorization": f"Bearer {token}"}) as answer:
        status, kind, body = answer.status, answer.content_type, await answer.read()
    for _ in range(2):
        async with http.head(path, headers={"Authorization": f"Bearer {token}"}) as answer:
            assert (answer.status, answer.content_type, await answer.read()) == (status, kind, b"")
            # Counts change between two scrapes.
            assert path == "/metrics" or int(answer.headers["Content-Length"]) == len(body)
    async with http.head("/api/v1/nodes") as answer:
        assert answer.status == 405


async def test_the_head_of_a_stream_ends_its_source_and_keeps_the_connection():
    ended = asyncio.Event()
    async with serving(an_app(events=forever(ended))) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        async with session.head("/api/v1/jobs/j/events") as answer:
            assert (answer.status, answer.content_type, await answer.read()) == (200, "text/event-stream", b"")
        await asyncio.wait_for(ended.wait(), 5)
        async with session.get("/health") as answer:
            assert answer.status == 200


async def test_the_head_of_a_stream_that_cannot_begin_is_its_refusal():
    async def fail() -> AsyncIterator[JobEvent | str]:
        raise NotFound("no such job")
        yield ""

    async with (
        serving(an_app(events=fail())) as url,
        aiohttp.ClientSession(url, headers=AUTH) as session,
        session.head("/api/v1/jobs/j/events") as answer,
    ):
        assert answer.status == 404


async def test_an_unknown_path_needs_the_token_too(http: aiohttp.ClientSession):
    async with http.get("/nowhere", headers={"Authorization": ""}) as answer:
        assert answer.status == 401
    async with http.get("/nowhere") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "not_found")


async def test_a_wrong_method_is_405(http: aiohttp.ClientSession):
    async with http.put("/api/v1/nodes") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "JSON"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"\xff\xfe", "body"),
        (b'{"node_name": "a", "ssh_host": "h", "colour": 1}', "colour"),
        (b'{"ssh_host": "h"}', "node_name"),
        (b'{"node_name": "a", "ssh_host": "h", "ssh_port": "22"}', "ssh_port"),
        (b'{"node_name": "a", "ssh_host": "h", "ssh_port": 0}', "ssh_port"),
        (b'{"node_name": "{{ 1 }}", "ssh_host": "h"}', "node_name"),
    ],
)
async def test_bad_input_names_the_field(http: aiohttp.ClientSession, body: bytes, field: str):
    async with http.post("/api/v1/nodes", data=body) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (400, "invalid_request")
        assert field in error["message"]


async def test_an_unknown_query_parameter_is_named(http: aiohttp.ClientSession):
    async with http.get("/api/v1/nodes/x?verbose=1") as answer:
        assert answer.status == 400 and "verbose" in (await answer.json())["error"]["message"]


async def test_a_body_over_one_mebibyte_is_413(http: aiohttp.ClientSession):
    async with http.post("/api/v1/nodes", data=b" " * (1024 * 1024 + 1)) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (413, "payload_too_large")


async def test_the_description_is_made_once_and_beside_the_loop(monkeypatch: pytest.MonkeyPatch):
    threads: list[int] = []

    def describe(*_: object) -> dict[str, str]:
        threads.append(threading.get_ident())
        return {"openapi": "3.1.0"}

    monkeypatch.setattr(openapi, "describe", describe)
    async with serving(an_app()) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        for _ in range(2):
            async with session.get("/openapi.json") as answer:
                assert await answer.json() == {"openapi": "3.1.0"}
    assert len(threads) == 1 and threads[0] != threading.get_ident()


async def test_an_answer_that_is_json_already_is_sent_as_it_is():
    routes = Routes((ops.QUEEN_HEALTH,))

    @routes.handle(ops.QUEEN_HEALTH)
    async def health(_: Request) -> Rendered:
        return Rendered(b'{"status":"healthy"}')

    app = create_app("rendered", "queen", routes, token=Token(TOKEN), registry=CollectorRegistry())
    async with serving(app) as url, aiohttp.ClientSession(url) as session, session.get("/health") as answer:
        assert (answer.content_type, await answer.read()) == ("application/json", b'{"status":"healthy"}')


async def test_an_unexpected_error_hides_its_reason(http: aiohttp.ClientSession):
    async with http.get("/api/v1/nodes/boom") as answer:
        text = await answer.text()
        assert answer.status == 500 and "secret" not in text and "internal_error" in text


async def test_a_correlation_id_is_echoed_or_made(http: aiohttp.ClientSession):
    async with http.get("/api/v1/nodes/x", headers={"X-Correlation-Id": "abc-1"}) as answer:
        assert answer.headers["X-Correlation-Id"] == "abc-1"
        assert (await answer.json())["error"]["correlation_id"] == "abc-1"
    async with http.get("/health", headers={"X-Correlation-Id": "{{ evil }}"}) as answer:
        assert len(answer.headers["X-Correlation-Id"]) == 32


async def test_metrics_count_by_operation_and_status(http: aiohttp.ClientSession):
    await (await http.get("/api/v1/nodes/x")).read()
    async with http.get("/metrics", headers={"Authorization": ""}) as answer:
        text = await answer.text()
    assert 'llama_orch_queen_http_requests_total{operation="get_node",status="404"} 1.0' in text


async def test_events_are_sent_one_by_one_and_a_late_failure_cuts_the_line():
    async def two_then_fail() -> AsyncIterator[JobEvent | str]:
        yield "one"
        yield "two"
        raise NotFound("gone")

    async with serving(an_app(events=two_then_fail())) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        received = b""
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get("/api/v1/jobs/j/events") as answer:
                async for chunk in answer.content.iter_any():
                    received += chunk
    assert received.startswith(b"data: one\n\ndata: two\n\nevent: error\n")


async def test_what_fails_before_the_first_event_is_a_plain_error():
    async def fail() -> AsyncIterator[JobEvent | str]:
        raise NotFound("no such job")
        yield ""

    async with (
        serving(an_app(events=fail())) as url,
        aiohttp.ClientSession(url, headers=AUTH) as session,
        session.get("/api/v1/jobs/j/events") as answer,
    ):
        assert (answer.status, (await answer.json())["error"]["message"]) == (404, "no such job")


async def test_a_client_that_leaves_ends_the_event_source():
    ended = asyncio.Event()
    async with serving(an_app(events=forever(ended))) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        answer = await session.get("/api/v1/jobs/j/events")
        assert await answer.content.readline() == b"data: first\n"
        answer.close()
        await asyncio.wait_for(ended.wait(), 5)


def test_an_operation_without_a_handler_stops_the_start():
    with pytest.raises(ValueError, match="GET /health"):
        create_app("bare", "queen", Routes((ops.QUEEN_HEALTH,)), token=Token(TOKEN), registry=CollectorRegistry())


async def test_who_asks_without_a_token_gets_a_proof_and_no_token(http: aiohttp.ClientSession):
    nonce = "n" * 43
    async with http.get("/api/v1/proof", params={"nonce": nonce}, headers={"Authorization": ""}) as answer:
        assert answer.status == 200
        text = await answer.text()
    proof = Proof.model_validate_json(text)
    assert proof.name == "queen" and proof.holds(TOKEN, "queen", nonce) and TOKEN not in text and not proof.also


async def test_each_token_that_is_taken_is_proven():
    token = Token(TOKEN, Token("one-that-is-taken-as-well"))
    app = create_app("both", "worker", Routes((PROOF,)), token=token, registry=CollectorRegistry(), identity="w")
    async with (
        serving(app) as url,
        aiohttp.ClientSession(url) as session,
        session.get("/api/v1/proof", params={"nonce": "n" * 43}) as answer,
    ):
        proof = Proof.model_validate_json(await answer.text())
    assert proof.holds(TOKEN, "worker", "n" * 43) and proof.holds("one-that-is-taken-as-well", "worker", "n" * 43)


@pytest.mark.parametrize(
    "query", ["", "nonce=", "nonce=short", f"nonce={'n' * 65}", f"nonce={'n' * 42}%0A", f"nonce={'n' * 43}&nonce=x"]
)
async def test_a_nonce_is_strict(http: aiohttp.ClientSession, query: str):
    async with http.get(f"/api/v1/proof?{query}", headers={"Authorization": ""}) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == "nonce"


CHANGES = [operation for operation in (*ops.QUEEN, *ops.HIVE, *ops.WORKER) if operation.changes]


def test_what_changes_something_is_owned_and_nothing_else():
    assert {f"{one.method} {one.path}" for one in CHANGES} == {
        f"{one.method} {one.path}" for one in (*ops.QUEEN, *ops.HIVE) if one.method != "GET"
    }
    assert not any(one.changes for one in ops.WORKER)


async def test_a_change_is_carried_to_its_end_and_knows_for_whom():
    began, go_on = asyncio.Event(), asyncio.Event()
    asked: asyncio.Queue[principal.Asker] = asyncio.Queue()
    routes = Routes((ops.CREATE_NODE,))

    @routes.handle(ops.CREATE_NODE)
    async def create(_: Request, body: NodeCreate) -> QueenHealth:
        began.set()
        await go_on.wait()
        await asked.put(principal.current())
        return QueenHealth(version=body.node_name)

    app = create_app("owned", "queen", routes, token=Token(TOKEN), registry=CollectorRegistry())
    async with serving(app) as url, aiohttp.ClientSession(url, headers=AUTH) as session:
        leaving = asyncio.create_task(session.post("/api/v1/nodes", json={"node_name": "a", "ssh_host": "h"}))
        await began.wait()
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        go_on.set()
        assert await asyncio.wait_for(asked.get(), 10) == principal.Asker("admin", "127.0.0.1")
    assert principal.current() == principal.Asker()
