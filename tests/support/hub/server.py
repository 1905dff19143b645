"""A hub for tests: speaks the model hub's own protocol, so that `huggingface_hub` itself is what runs against it.

Point a process at it with `HF_ENDPOINT` (or `endpoint=`). What it can do wrong is in `Faults`, what it was asked
is in `Hub.requests`. Served by hand: `python -m tests.support.hub.server --bind ADDR --port N --dir FOLDER`, where
the folder holds `ORG/NAME/FILE`.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.hub.content import Faults, HubFile, Repo, Request, chunks

_API = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)"
    r"(?:/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<folder>.+))?)?"
)
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/(?P<verb>resolve|storage)/(?P<revision>[^/]+)/(?P<file>.+)")


class Hub:
    """The server, in threads of this process, from `with Hub() as hub:` until the block ends.

    `separate_storage` sends LFS files from another origin, by redirect, as the real hub does; that one refuses
    requests which carry a token.
    """

    def __init__(self, bind: str = "127.0.0.1", port: int = 0, *, separate_storage: bool = False) -> None:
        self.faults = Faults()
        self.requests: list[Request] = []
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, bool] = {}
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server((bind, port), self)
        self._storage = _Server((bind, 0), self, is_storage=True) if separate_storage else None
        self.url = self._server.url
        self.storage_url = self._storage.url if self._storage else ""

    def __enter__(self) -> Self:
        for server in filter(None, (self._server, self._storage)):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        for server in filter(None, (self._server, self._storage)):
            server.shutdown()
            server.server_close()
            server.cut_connections()

    def add_repo(
        self,
        name: str,
        files: Mapping[str, bytes | Path],
        *,
        gated: bool = False,
        private: bool = False,
        revision: str = "main",
    ) -> str:
        """Add a commit with these files to a repository, point `revision` to it, and return the commit's hash."""
        repo = self.repos.setdefault(name, Repo(name))
        repo.gated, repo.private = gated, private
        return repo.add_commit(files, revision)

    def add_token(self, token: str, *, access: bool = True) -> None:
        """Make a token known; `access` says whether gated and private repositories open to it."""
        self.tokens[token] = access

    def bodies(self, file: str) -> list[Request]:
        """Return the GET requests for a file (`ORG/NAME/FILE`) that got a body, oldest first."""
        return [seen for seen in self.requests if seen.file == file and seen.method == "GET" and seen.sent]

    def bytes_sent(self, file: str) -> int:
        """Return how many bytes of a file were sent in all."""
        return sum(seen.sent for seen in self.bodies(file))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], hub: Hub, *, is_storage: bool = False) -> None:
        self.hub = hub
        self.is_storage = is_storage
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)
        host, port = self.server_address[:2]
        self.url = f"http://{host!s}:{port}"

    def cut_connections(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str, commit: str = "") -> None:
        self.status, self.code, self.message, self.commit = status, code, message, commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        assert isinstance(self.server, _Server)
        self.origin = self.server
        self.hub = self.origin.hub
        self.origin.connections.add(self.connection)

    def finish(self) -> None:
        self.origin.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: `Hub.requests` is the log."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen = Request(self.command, self.path, token=token)
        try:
            self._admit()
            self._route(urlsplit(self.path).path)
        except _Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            headers |= {"X-Repo-Commit": refusal.commit} if refusal.commit else {}
            self._send_json({"error": refusal.message}, refusal.status, headers)
        except OSError:
            self.close_connection = True

    def _admit(self) -> None:
        with self.hub.lock:
            self.hub.requests.append(self.seen)
            unavailable = self.hub.faults.unavailable > 0
            self.hub.faults.unavailable -= unavailable
        self._wait_while(lambda faults: faults.silent)
        if unavailable:
            raise _Refusal(503, "", "Service unavailable")

    def _route(self, path: str) -> None:
        if match := _RESOLVE.fullmatch(path):
            self._send_file(match["verb"], unquote(match["repo"]), unquote(match["revision"]), unquote(match["file"]))
        elif match := _API.fullmatch(path):
            repo = self._repo(unquote(match["repo"]))
            commit, tree = self._commit(repo, unquote(match["revision"] or "main"))
            if match["verb"] == "tree":
                folder = unquote(match["folder"] or "")
                self._send_json([file.entry() for file in tree.values() if file.name.startswith(folder)])
            elif match["verb"] == "paths-info":
                wanted = parse_qs(self.body.decode()).get("paths", [])
                self._send_json([tree[name].entry() for name in wanted if name in tree])
            else:
                blobs = "blobs" in parse_qs(urlsplit(self.path).query)
                self._send_json(repo.model_info(commit, blobs=blobs))
        else:
            raise _Refusal(404, "", f"No such page: {path}")

    def _repo(self, name: str) -> Repo:
        hub, token = self.hub, self.seen.token
        if token and token not in hub.tokens:
            raise _Refusal(401, "", "Invalid credentials in Authorization header")
        repo = hub.repos.get(name)
        if repo is None or (repo.private and not hub.tokens.get(token)):
            raise _Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, repo: Repo, revision: str) -> tuple[str, dict[str, HubFile]]:
        commit = repo.revisions.get(revision, revision)
        if commit not in repo.commits:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repo.commits[commit]

    def _send_file(self, verb: str, name: str, revision: str, path: str) -> None:
        hub, token = self.hub, self.seen.token
        from_storage = verb == "storage" and self.origin.is_storage
        if from_storage and token:
            raise _Refusal(400, "", "Only one way to authorise is allowed: the signed address or a token")
        # The address that a redirect gave carries its own permission.
        repo = hub.repos[name] if from_storage else self._repo(name)
        commit, tree = self._commit(repo, revision)
        if repo.gated and not from_storage and not hub.tokens.get(token):
            status = 403 if token else 401
            raise _Refusal(status, "GatedRepo", f"Access to model {name} is restricted: ask for it on its page")
        if path not in tree:
            raise _Refusal(404, "EntryNotFound", "Entry not found", commit)
        file = tree[path]
        self.seen.file = f"{name}/{path}"
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.is_lfs:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"'}
            if hub.storage_url and not from_storage:
                location = f"{hub.storage_url}/{quote(name)}/storage/{commit}/{quote(path)}?signature=valid"
                self._send_head(302, headers | {"Location": location, "Content-Length": "0"})
                return
        self._send_content(file, headers)

    def _send_content(self, file: HubFile, headers: dict[str, str]) -> None:
        first, last, status = 0, file.size - 1, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and not self.hub.faults.ignore_range:
            first, last, status = int(wanted[1]), min(int(wanted[2] or last), last), 206
            headers |= {"Content-Range": f"bytes {first}-{last}/{file.size}"}
            if first > last:
                self._send_head(416, {"Content-Range": f"bytes */{file.size}", "Content-Length": "0"})
                return
        self.seen.first_byte = first
        self._send_head(status, headers | {"Content-Length": str(last - first + 1)})
        if self.command != "HEAD":
            self._send_body(file, first, last + 1)

    def _send_body(self, file: HubFile, first: int, end: int) -> None:
        hub = self.hub
        with hub.lock:
            if cut := hub.faults.cuts > 0:
                hub.faults.cuts -= 1
        limit = hub.faults.cut_after if cut else hub.faults.stall_after
        position = first
        for chunk in chunks(file.content, first, end):
            data = _corrupted(chunk, file.size // 2 - position) if hub.faults.corrupt else chunk
            position += len(chunk)
            if limit is not None and self.seen.sent + len(data) > limit:
                within = limit - self.seen.sent
                self._write(data[:within])
                if cut:
                    raise ConnectionAbortedError("cut on purpose")
                self._wait_while(lambda faults: faults.stall_after is not None)
                data, limit = data[within:], None
            self._write(data)

    def _write(self, data: bytes) -> None:
        hub = self.hub
        while data:
            pace = hub.faults.bytes_per_second
            piece = data[: max(1, pace // 20)] if pace else data
            self.wfile.write(piece)
            self.seen.sent += len(piece)
            data = data[len(piece) :]
            if pace and hub.stopped.wait(len(piece) / pace):
                raise ConnectionAbortedError("the hub stops")

    def _wait_while(self, holds: Callable[[Faults], bool]) -> None:
        hub = self.hub
        while holds(hub.faults):
            if hub.stopped.wait(0.02):
                raise ConnectionAbortedError("the hub stops")

    def _send_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_json(self, answer: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        kind = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        with suppress(OSError):
            self._send_head(status, kind | dict(headers or {}))
            if self.command != "HEAD":
                self.wfile.write(body)


def _corrupted(chunk: bytes, position: int) -> bytes:
    if not 0 <= position < len(chunk):
        return chunk
    return chunk[:position] + bytes([chunk[position] ^ 0xFF]) + chunk[position + 1 :]


def add_folder(hub: Hub, folder: Path) -> list[str]:
    """Add every `ORG/NAME/FILE` below a folder and return the names of the repositories."""
    names = []
    for home in sorted(path for path in folder.glob("*/*") if path.is_dir()):
        files = {str(path.relative_to(home)): path for path in sorted(home.rglob("*")) if path.is_file()}
        names.append(str(home.relative_to(folder)))
        hub.add_repo(names[-1], files)
    return names


def main(arguments: list[str] | None = None) -> None:
    """Serve a folder until SIGINT or SIGTERM; the first line printed is the address."""
    parser = argparse.ArgumentParser(description="A hub for tests, serving ORG/NAME/FILE below a folder.")
    parser.add_argument("--bind", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--dir", type=Path, required=True, help="folder with ORG/NAME/FILE")
    parser.add_argument("--bytes-per-second", type=int, default=0, help="limit for each file; 0 is none")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with Hub(options.bind, options.port) as hub, suppress(KeyboardInterrupt):
        names = add_folder(hub, options.dir)
        hub.faults.bytes_per_second = options.bytes_per_second
        sys.stdout.write(f"{hub.url}\n" + "".join(f"  {name}\n" for name in names))
        sys.stdout.flush()
        hub.stopped.wait()


if __name__ == "__main__":
    main()
