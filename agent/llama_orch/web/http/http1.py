"""HTTP/1.1 as Sanic speaks it, with bounds on what a client may make it wait for, and heads taken strictly.

Sanic's own time-outs begin anew with each byte, so a client that sends one now and then holds a connection for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

from sanic import Request
from sanic.exceptions import RequestTimeout
from sanic.headers import format_http1_response
from sanic.http import Http
from sanic.http.constants import Stage
from sanic.server import HttpProtocol

from llama_orch.contract.errors import BadRequest

from .. import correlation
from ..events import STALLED_SECONDS
from .connections import OpenConnections

# From the first byte of a request to the end of its head, and from there to the end of its body, however it drips.
HEAD_SECONDS = 10.0
BODY_SECONDS = 30.0
# For how long, and how much, what a client still sends is thrown away after an answer that did not wait for it.
# Closed at once, its kernel would be told of a broken connection, and might drop the answer.
LINGER_SECONDS = 1.0
LINGER_BYTES = 4 * 1024 * 1024
# RFC 9112 and 9110, without what servers and proxies read differently: folded lines, lone CR or LF, blanks in names.
_HEAD = re.compile(
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~\x80-\xff]+ HTTP/1\.[01]"
    rb"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*)*"
)
HTTP_1_0 = "1.0"
_DECIMAL = re.compile(r"[0-9]{1,16}")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{1,8}")


class PlainRequest(Request):
    """A request to a path, whether or not a slash stands behind it: also where the last parameter may hold slashes."""

    @property
    def path(self) -> str:
        """The path without that slash."""
        return super().path.removesuffix("/") or "/"


class _Http(Http):
    """One connection's requests, one after the other."""

    __slots__ = ()
    protocol: Connection

    def init_for_request(self) -> None:
        super().init_for_request()
        # Nothing is left of the request before it, however that ended.
        self.protocol.forget_body()

    async def http1_request_header(self) -> None:
        # The connection's task serves all its requests: each begins without the last one's id.
        correlation.take_or_make(None)
        self.protocol.expect_within(HEAD_SECONDS)
        try:
            await super().http1_request_header()
            _check(self.request)
        except BaseException:
            self.protocol.expect_within(None)
            raise
        if self.request.version == HTTP_1_0:
            self.expecting_continue = False
        self.protocol.expect_within(BODY_SECONDS if self.request_body else None)

    async def read(self) -> bytes | None:
        if self.request_body == "chunked" and self.request_bytes_left == 0:
            while len(self.recv_buffer) < 2:
                await self._receive_more()
            if self.recv_buffer[:2] != b"\r\n":
                self.keep_alive = False
                raise BadRequest("the body's chunks are malformed")
        data = await super().read()
        if not self.request_body:
            self.protocol.expect_within(None)
        return data

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        self.protocol.expect_within(None)
        # An answer that did not wait for the body is its refusal: nothing more of it is read, nor asked for.
        if self.request_body or self.request.method == "NONE":
            self.request_body = None
            self.keep_alive = self.expecting_continue = False
            self.protocol.lingers = True
        if self.request.version == HTTP_1_0 and not end_stream and self._has_no_length():
            await self._begin_until_close(data)
        else:
            await super().http1_response_header(data, end_stream)

    def _has_no_length(self) -> bool:
        response = self.response
        return not (getattr(response, "body", None) or "content-length" in response.headers)

    async def _begin_until_close(self, data: bytes) -> None:
        """Begin a body that ends with its connection: HTTP/1.0 knows no chunks (RFC 9112, 6.1 and 6.3)."""
        self.keep_alive = False
        self.response.headers["connection"] = "close"
        self.response_func = self.head_response_ignored if self.head_only else self._send_until_close
        await self._send(format_http1_response(self.response.status, self.response.processed_headers))
        self.stage = Stage.RESPONSE
        await self.response_func(data, end_stream=False)

    async def head_response_ignored(self, data: bytes, end_stream: bool) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Sanic's own is awaited, and is no coroutine.
        super().head_response_ignored(data, end_stream)

    async def _send_until_close(self, data: bytes, end_stream: bool) -> None:
        if data:
            await self._send(data)
        if end_stream:
            self.response_func = None
            self.stage = Stage.IDLE

    @staticmethod
    def _safe_int(value: str, base: int = 10) -> int:
        if not (_DECIMAL if base == 10 else _HEXADECIMAL).fullmatch(value):
            raise ValueError
        return int(value, base)


def _check(request: Any) -> None:
    headers = request.headers
    if not _HEAD.fullmatch(request.head):
        raise BadRequest("the request's head is malformed: a line of it is no 'Name: value'")
    if len(headers.getall("host", [])) > 1:
        raise BadRequest("the request has several Host headers: send one")
    length = headers.getone("content-length", None)
    if length is not None and not _DECIMAL.fullmatch(length.rstrip()):
        raise BadRequest("Content-Length: must be digits alone")
    if request.version == HTTP_1_0 and "transfer-encoding" in headers:
        raise BadRequest("Transfer-Encoding: HTTP/1.0 has none; send Content-Length")


class Connection(HttpProtocol):
    """One connection, with a deadline for what its client has begun, counted among all of its service.

    `lingers` is set where an answer was given before all of the request had come.
    """

    HTTP_CLASS = _Http
    # Sanic's classes take no attributes but those that are named.
    __slots__ = ("_deadline", "_discarded", "_stalled", "lingers")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lingers = False
        self._discarded: int | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def _counted(self) -> OpenConnections[Connection]:
        return self.app.ctx.connections

    def authenticated(self) -> None:
        """Its client has shown the token."""
        self._counted.known(self)

    def forget_body(self) -> None:
        """Its last request's body is in memory no more."""
        self.app.ctx.body_room.give_back(self)

    def expect_within(self, seconds: float | None) -> None:
        """Give the client this long for what comes next; None where nothing is awaited of it."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        self._deadline = None
        if self._http is not None and self._task is not None:
            self._http.exception = RequestTimeout("the request did not arrive in time")
            self._task.cancel()

    def connection_made(self, transport: Any) -> None:
        """A client has come; where there are too many, another one goes, or this one."""
        address = transport.get_extra_info("peername")
        must_go = self._counted.add(self, address[0] if isinstance(address, tuple) else str(address))
        if must_go is self:
            transport.abort()
            return
        if must_go is not None and must_go.transport is not None:
            must_go.transport.abort()
        super().connection_made(transport)
        self.expect_within(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._counted.remove(self)
        self.forget_body()
        self.expect_within(None)
        if self.conn_info is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what the client sends, or throw it away where its answer is given."""
        if self._discarded is None:
            super().data_received(data)
            return
        self._discarded += len(data)
        if self._discarded > LINGER_BYTES:
            super().close()

    def close(self, timeout: float | None = None) -> None:
        """End it; where the client may still be sending, after a moment in which it can read its answer."""
        if not self.lingers or self._discarded is not None or self.transport is None or self.transport.is_closing():
            super().close(timeout)
            return
        self._discarded = 0
        self.recv_buffer.clear()
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
            self.transport.resume_reading()
        self._deadline = self.loop.call_later(LINGER_SECONDS, super().close)

    def pause_writing(self) -> None:
        """The client takes nothing more for now; one that does so for long is cut off."""
        super().pause_writing()
        if self.transport is not None:
            self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client takes what it is sent."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()
