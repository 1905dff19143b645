from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from llama_orch.client import Hive, NoAnswer, NotTheService, Queen, Service, Worker
from llama_orch.client.proving import ProvingConnector
from llama_orch.contract import errors, operations
from llama_orch.contract.hive import DownloadRequest, SpawnRequest, WorkerStatus
from llama_orch.contract.inference import ChatMessage, ChatRequest, CompletionRequest, EmbeddingRequest, TokenizeRequest
from llama_orch.contract.queen import JobStatus, NodeCreate, ProvisionRequest
from tests.unit.cli.services import INFERENCE_TOKEN, TOKEN, WORDS, Fleet, serve_fleet

CHAT = ChatRequest(messages=[ChatMessage(role="user", content="Hi")])


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with serve_fleet() as served:
        yield served


@contextlib.asynccontextmanager
async def answering(content: bytes) -> AsyncIterator[str]:
    """A server that sends `content` to whoever connects, and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(content)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("client", "table"), [(Queen, operations.QUEEN), (Hive, operations.HIVE), (Worker, operations.WORKER)]
)
def test_every_operation_of_the_contract_is_in_the_client(client: type[Service], table: tuple[Any, ...]):
    source = inspect.getsource(client) + inspect.getsource(Service)
    names = {value: name for name, value in vars(operations).items() if isinstance(value, operations.Operation)}
    assert [names[operation] for operation in table if f"ops.{names[operation]}" not in source] == []


async def test_nodes_and_jobs(fleet: Fleet):
    async with Queen(fleet.urls["queen"], TOKEN) as queen:
        assert (await queen.health()).version == "0.1.0"
        created = await queen.create_node(NodeCreate(node_name="n1", ssh_host="192.0.2.7"))
        assert [node.node_name for node in await queen.list_nodes()] == ["n1"]
        assert (await queen.get_node("n1")).job_id == created.job_id == "job-1"
        events = [event async for event in queen.job_events("job-1")]
        assert [event.outcome for event in events] == [None, "started", "changed", "ok"]
        assert (await queen.get_job("job-1")).status == JobStatus.SUCCEEDED
        assert (await queen.provision_node("n1")).job_id == "job-2"
        assert [job.job_id for job in await queen.list_jobs("n1")] == ["job-2", "job-1"]
        assert await queen.list_jobs("other") == []
        assert (await queen.cancel_job("job-2")).status == JobStatus.CANCELLED
        assert (await queen.delete_node("n1")).node_name == "n1"
        assert (await queen.ssh_key()).public_key.startswith("ssh-ed25519")
        assert "/api/v1/nodes" in (await queen.openapi())["paths"]
        assert "llama_orch_queen_http_requests_total" in await queen.metrics()


async def test_models_workers_and_devices(fleet: Fleet):
    async with Hive(fleet.urls["hive"], TOKEN) as hive:
        assert (await hive.health()).workers.total == 0
        assert (await hive.info()).hive_id == "h"
        assert (await hive.devices()).cpu.cores == 2
        begun = await hive.download_model(DownloadRequest(model_ref="hf:o/r"))
        assert [d.bytes_done async for d in hive.download_events(begun.download_id)] == [100, 500, 1000]
        assert (await hive.get_download("d1")).status == "ready"
        assert len(await hive.list_downloads()) == 1
        assert (await hive.cancel_download("d1")).status == "cancelled"
        worker = await hive.spawn_worker(SpawnRequest(model_ref="hf:o/r", backend="cpu"))
        assert (await hive.get_worker(worker.id)).status == WorkerStatus.IDLE
        assert (await hive.stop_worker(worker.id)).status == WorkerStatus.STOPPED
        assert await hive.list_workers() == [] == await hive.list_models()
        with pytest.raises(errors.NotFound):
            await hive.delete_model("hf:o/r", "m.gguf")


async def test_answers_whole_and_streamed(fleet: Fleet):
    text = "".join(WORDS)
    async with Worker(fleet.urls["worker"], INFERENCE_TOKEN) as worker:
        assert (await worker.health()).status == "idle"
        assert (await worker.models())[0].id == "m"
        assert (await worker.model("hf:org/repo")).id == "hf:org/repo"
        assert (await worker.chat(CHAT)).choices[0].message.content == text
        chunks = [chunk async for chunk in worker.chat_streamed(CHAT)]
        assert "".join(c.choices[0]["delta"]["content"] for c in chunks if c.choices) == text
        prompt = CompletionRequest(prompt="Hi")
        assert (await worker.complete(prompt)).choices[0].text == text
        assert (await worker.tokenize(TokenizeRequest(prompt="AB"))).tokens == [65, 66]
        assert len((await worker.embed(EmbeddingRequest(input=["a", "b"]))).data) == 2
        assert "".join([c.choices[0].text async for c in worker.complete_streamed(prompt)]) == text


async def test_an_error_keeps_its_kind_its_message_and_its_details(fleet: Fleet):
    fleet.add_node("n1")
    async with Queen(fleet.urls["queen"], TOKEN, correlation_id="abc-1") as queen:
        with pytest.raises(errors.Conflict, match="node n1 is there already") as caught:
            await queen.create_node(NodeCreate(node_name="n1", ssh_host="h"))
    assert caught.value.details == {"job_id": "job-1", "correlation_id": "abc-1"}
    async with Worker(fleet.urls["worker"], INFERENCE_TOKEN) as worker:
        fleet.busy = True
        with pytest.raises(errors.Busy) as busy:
            await anext(worker.chat_streamed(CHAT))
    assert busy.value.headers["Retry-After"] == "3"


async def test_another_service_s_token_is_not_sent(fleet: Fleet):
    async with Queen(fleet.urls["queen"], "another-token-of-enough-length") as queen:
        with pytest.raises(NotTheService, match="does not prove"):
            await queen.list_nodes()
        assert (await queen.health()).status == "healthy"


async def test_the_correlation_id_goes_along(fleet: Fleet):
    async with Queen(fleet.urls["queen"], TOKEN, correlation_id="from-me") as queen:
        await queen.list_nodes()
    assert fleet.correlation_ids == ["from-me"]


async def test_a_sudo_password_arrives_as_it_is(fleet: Fleet):
    fleet.add_node("n1")
    async with Queen(fleet.urls["queen"], TOKEN) as queen:
        await queen.provision_node("n1", ProvisionRequest(sudo_password=SecretStr("s3cret \u00e4")))
    body = fleet.bodies[0]
    assert isinstance(body, ProvisionRequest) and body.sudo_password is not None
    assert body.sudo_password.get_secret_value() == "s3cret \u00e4"


@pytest.mark.parametrize("name", ["../jobs", "a/b", "a?force=true", "a#b", "%2e"])
async def test_a_name_stays_one_part_of_the_path(fleet: Fleet, name: str):
    async with Queen(fleet.urls["queen"], TOKEN) as queen:
        with pytest.raises(errors.NotFound):
            await queen.get_node(name)


async def test_a_stream_without_its_end_is_no_answer(fleet: Fleet):
    fleet.cut_answer = True
    async with Worker(fleet.urls["worker"], INFERENCE_TOKEN) as worker:
        with pytest.raises(NoAnswer, match="before it was whole"):
            async for _ in worker.chat_streamed(CHAT):
                pass


async def test_an_error_event_is_raised():
    body = (
        b'data: {"one": 1}\n\n: still here\n\nevent: error\n'
        b'data: {"error": {"code": "gone", "message": "the model went away", "correlation_id": "c"}}\n\n'
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    async with answering(head + body) as url, Worker(url) as worker:
        with pytest.raises(errors.ApiError, match="the model went away") as caught:
            async for _ in worker._stream(operations.JOB_EVENTS, silence=5, job_id="j"):
                pass
    assert caught.value.error_code == "gone"


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\n\r\n<html", errors.UpstreamFailed, "502"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"x": 1}\n', NotTheService, "same version"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://evil/\r\nContent-Length: 0\r\n\r\n", errors.UpstreamFailed, "302"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{", NoAnswer, "cut off"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", NoAnswer, "no answer from"),
        (b"", NoAnswer, "no answer from"),
    ],
)
async def test_what_is_no_llama_orch_is_told_apart(content: bytes, kind: type[Exception], message: str):
    async with answering(content) as url, Queen(url, TOKEN) as queen:
        with pytest.raises(kind, match=message):
            await queen.list_nodes()


async def test_nobody_there_and_nobody_answering():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    async with Queen(f"http://127.0.0.1:{port}", TOKEN) as queen:
        with pytest.raises(NoAnswer, match=r"127\.0\.0\.1.*refused"):
            await queen.health()

    async def hold(*_: object) -> None:
        await asyncio.Event().wait()

    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with Queen(f"http://127.0.0.1:{port}", TOKEN, timeout=0.05) as queen:
        with pytest.raises(NoAnswer, match=r"within 0\.05 s"):
            await queen.health()
    silent.close()


async def test_an_answer_that_is_larger_than_it_may_be_is_none():
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n" + b" " * 400
    async with answering(whole) as url, Hive(url, most_bytes=399) as hive:
        with pytest.raises(NoAnswer, match="larger than 399 bytes"):
            await hive.health()


async def test_a_session_that_was_lent_stays_with_its_owner(fleet: Fleet):
    async with aiohttp.ClientSession(connector=ProvingConnector("hive")) as session:
        for _ in range(2):
            hive = Hive(fleet.urls["hive"], TOKEN, session=session)
            assert (await hive.info()).hive_id
        assert not session.closed
