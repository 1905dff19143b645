"""The hub is asked by a process of its own, whatever it answers and however slowly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path

import pytest

from llama_orch.contract.model_ref import HubRef
from llama_orch.hive.models.downloads import run
from llama_orch.hive.models.hub import question
from llama_orch.hive.models.hub.description import FetchOrder, Question, Resolved
from llama_orch.hive.problems import Failed

COMMIT = "c" * 40
LFS = {"sha256": "a" * 64, "size": 5, "pointerSize": 134}
FILE = {"rfilename": "m-Q4_K_M.gguf", "size": 5, "blobId": "b" * 40, "lfs": LFS}


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes | None) -> None:
    """One request, answered with this content; with None it drips for ever."""
    await reader.readuntil(b"\r\n\r\n")
    length = 10**9 if content is None else len(content)
    writer.write(f'HTTP/1.1 200 OK\r\nX-Repo-Commit: {COMMIT}\r\nETag: "x"\r\nContent-Length: {length}\r\n'.encode())
    writer.write(b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + (content or b""))
    try:
        while content is None:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.1)
        await writer.drain()
    except OSError:
        pass
    writer.close()


async def asked(tmp_path: Path, content: bytes | None) -> str:
    """What came of a question to a hub that answers everything with this."""
    server = await asyncio.start_server(lambda r, w: answers(r, w, content), "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        found = await question.ask(Question(ref=HubRef("org/repo"), endpoint=endpoint, token=None), tmp_path)
    except Failed as failed:
        return f"{failed.problem.code}: {failed.problem.message}"
    finally:
        server.close()
    return ", ".join(file.name for file in found.files)


def listing(*files: object, sha: str = COMMIT) -> bytes:
    return json.dumps({"id": "org/repo", "sha": sha, "siblings": files}).encode()


async def test_names_that_become_no_path_are_passed_over(tmp_path: Path):
    others = ["../../x.gguf", "/etc/x.gguf", "a\nb-Q4_K_M.gguf", "{{ x }}-Q4_K_M.gguf", "-x-Q4_K_M.gguf"]
    others += [".x-Q4_K_M.gguf", "n" * 300 + ".gguf", "ü" * 126 + ".gguf", "\u202e-Q4_K_M.gguf"]
    files = [FILE | {"rfilename": name} for name in others]
    assert await asked(tmp_path, listing(*files, FILE)) == "m-Q4_K_M.gguf"
    assert await asked(tmp_path, listing(*files)) == "file_not_found: there is no .gguf file in org/repo"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (listing(FILE | {"lfs": LFS | {"sha256": "../../../../tmp/x"}}), "etag"),
        (listing(FILE | {"lfs": LFS | {"size": 2**60}}), "size"),
        (listing(FILE | {"lfs": LFS | {"size": -1}}), "size"),
        (listing(FILE, sha="../../main"), "commit"),
    ],
)
async def test_hashes_and_sizes_that_cannot_be_are_refused(tmp_path: Path, content: bytes, what: str):
    assert await asked(tmp_path, content) == f"hub_failed: the hub says of org/repo what cannot be: its {what}"


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b'{"siblings": 5}', b"[" * 100_000])
async def test_what_is_no_listing_is_said_so(tmp_path: Path, content: bytes):
    assert (await asked(tmp_path, content)).startswith(("hub_failed", "hub_is_none", "file_not_found"))


async def test_a_listing_of_any_size_costs_the_agent_nothing(tmp_path: Path):
    before = _resident()
    content = listing(*[FILE | {"rfilename": "../x"}] * 700_000)
    kept = _resident()
    assert (await asked(tmp_path, content)).startswith(("hub_failed", "hub_unreachable"))
    assert _resident() - kept < 100 * 2**20 + (kept - before)


async def test_a_hub_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(question, "LONGEST_QUESTION_S", 2.0)
    monkeypatch.setattr(question, "_GRACE_S", 0.0)
    began = time.monotonic()
    assert (await asked(tmp_path, None)).startswith("hub_failed: the hub says nothing")
    assert time.monotonic() - began < 15


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A file of five bytes, says its head; its content never ends."""
    asked = await reader.readuntil(b"\r\n\r\n")
    writer.write(f'HTTP/1.1 200 OK\r\nX-Repo-Commit: {COMMIT}\r\nETag: "{"a" * 64}"\r\n'.encode())
    if asked.startswith(b"HEAD"):
        writer.write(b"Content-Length: 5\r\nConnection: close\r\n\r\n")
    else:
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                await writer.drain()
    writer.close()


async def test_a_file_that_never_ends_does_not_fill_the_disk(tmp_path: Path):
    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    model = Resolved.model_validate(
        {"repo": "org/repo", "revision": "main", "commit": COMMIT, "filename": "m.gguf"}
        | {"files": [{"name": "m.gguf", "size": 5, "etag": "a" * 64}]}
    )
    order = FetchOrder(endpoint=endpoint, token=None, cache=tmp_path, model=model)
    with pytest.raises(Failed) as failed:
        async with asyncio.timeout(60):
            await run.until_ready(order, lambda _: None, attempts=1, stall_s=30)
    server.close()
    assert (failed.value.problem.code, failed.value.retry) == ("checksum_mismatch", False)
    assert _begun(tmp_path) < 2**20


def _begun(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*.part"))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
