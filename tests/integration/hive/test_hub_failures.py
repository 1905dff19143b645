"""What stands between a hive and its hub, with real variables in the environment of the process that asks."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from llama_orch.contract.model_ref import HubRef
from llama_orch.hive.models.downloads import run
from llama_orch.hive.models.hub import question
from llama_orch.hive.models.hub.description import FetchOrder, Question, Resolved
from llama_orch.hive.problems import Failed
from tests.support.hives import HiveProcess, a_hive
from tests.support.hub.server import Hub
from tests.unit.hive.models.hub.test_environment import PROXIES, VARIABLES

REPO, NAME = "org/letters-GGUF", "m-Q4_K_M.gguf"
PAGE = b"<!doctype html><title>Sign in</title><p>Please sign in to use the network.</p>"
# No name server knows it: whoever asks it without its proxy is told so.
FAR = "http://hub.invalid"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.add_repo(REPO, {NAME: b"GGUF" * 100})
        yield running


@contextlib.asynccontextmanager
async def answering(
    status: str, *headers: str, body: bytes = PAGE, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """`address:port` of a server that says this to whatever it is asked."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            asked = await reader.readuntil(b"\r\n\r\n")
            lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
            writer.write("\r\n".join([*lines, "", ""]).encode() + (b"" if asked.startswith(b"HEAD") else body))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def asked(endpoint: str, cache: Path) -> Failed:
    """Why the hub could not be asked."""
    with pytest.raises(Failed) as failed:
        await question.ask(Question(ref=HubRef(REPO), endpoint=endpoint, token=None), cache)
    return failed.value


async def fetched(endpoint: str, cache: Path) -> Failed:
    """Why a file could not be fetched that was described before."""
    described = {"repo": REPO, "revision": "main", "commit": "c" * 40, "filename": NAME}
    model = Resolved.model_validate({**described, "files": [{"name": NAME, "size": 400, "etag": "a" * 64}]})
    order = FetchOrder(endpoint=endpoint, token=None, cache=cache, model=model)
    with pytest.raises(Failed) as failed:
        await run.until_ready(order, lambda _: None, attempts=1, stall_s=30)
    return failed.value


async def test_a_proxy_that_is_not_there_hides_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert (await asked(FAR, tmp_path)).problem.code == "hub_unreachable"


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "511 Network Authentication Required"])
async def test_a_proxy_that_answers_with_a_page_is_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str):
    async with answering(status, "Content-Type: text/html; charset=utf-8") as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        for failed in (await asked(FAR, tmp_path), await fetched(FAR, tmp_path)):
            # A hub that fails may send a page as well.
            assert failed.problem.code == ("hub_failed" if status.startswith("5") else "hub_is_none")
            assert failed.retry
    assert "HTTPS_PROXY" in failed.problem.what_to_do or status.startswith("5")
    assert _begun(tmp_path) == 0, "nothing of a page stays"


@pytest.mark.parametrize("endpoint", [FAR, "https://hub.invalid"])
async def test_a_proxy_that_asks_for_a_password_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
):
    async with answering("407 Proxy Authentication Required", "Proxy-Authenticate: Basic") as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://{proxy}")
        failed = await asked(endpoint, tmp_path)
    assert failed.problem.code == "hub_proxy_refused" and "407" in failed.problem.message
    assert "HTTPS_PROXY" in failed.problem.what_to_do


async def test_a_certificate_that_nobody_trusts_is_said_and_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    certificate, context = self_signed(tmp_path)
    async with answering("200 OK", "Content-Type: text/html", tls=context) as address:
        port = address.rpartition(":")[2]
        failed = await asked(f"https://localhost:{port}", tmp_path)
        assert failed.problem.code == "hub_certificate" and "self" in failed.problem.message
        assert "SSL_CERT_FILE" in failed.problem.what_to_do
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert (await asked(f"https://localhost:{port}", tmp_path)).problem.code == "hub_is_none"
    certificate.write_text("no certificate")
    for failed in (await asked(FAR, tmp_path), await fetched(FAR, tmp_path)):
        assert failed.problem.code == "hub_certificate" and "SSL_CERT_FILE" in failed.problem.message


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:1080", "hub_proxy_unusable"),
        ("HTTPS_PROXY", "socks5://127.0.0.1:1080", "hub_proxy_unusable"),
        ("HF_HUB_OFFLINE", "1", "hub_offline"),
        ("HF_ENDPOINT", "hub.example", "hub_endpoint_wrong"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem", "hub_certificate"),
    ],
)
async def test_a_hive_says_which_variable_is_wrong(tmp_path: Path, hub: Hub, variable: str, value: str, code: str):
    endpoint = {} if variable == "HF_ENDPOINT" else {"hub_endpoint": hub.url}
    async with a_hive(tmp_path, environment={variable: value}, **endpoint) as hive:
        status, body = await hive.call("POST", "/api/v1/models/download", json={"model_ref": f"hf:{REPO}"})
        assert (status, body["error"]["code"]) == (502, code)
        assert variable in body["error"]["message"]
    assert not hub.requests


async def test_a_download_that_began_says_so_too(tmp_path: Path, hub: Hub):
    hive = HiveProcess(tmp_path, hub_endpoint=hub.url)
    try:
        await hive.start()
        hub.faults.bytes_per_second = 100
        path = "/api/v1/models/download"
        begun = await hive.ok("POST", path, json={"model_ref": f"hf:{REPO}"})
        await hive.end()
        hive._environment["HF_HUB_OFFLINE"] = "1"
        await hive.start()
        failed = await hive.download(begun["download_id"], "failed")
        assert failed["error"]["code"] == "hub_offline" and "HF_HUB_OFFLINE" in failed["error"]["message"]
    finally:
        await hive.close()


def _begun(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*.part"))


def self_signed(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for `localhost` that no authority signed, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return certificate, context
