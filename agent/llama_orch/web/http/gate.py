"""Who is answered at all, decided from a request's head, before any of its body is read."""

from __future__ import annotations

import ipaddress
import socket
import time
from urllib.parse import urlsplit

from sanic import Request, Sanic

from llama_orch.contract.errors import Forbidden, Unauthorized
from llama_orch.contract.operations import Operation

from .. import correlation, cors, principal
from ..principal import Authenticator
from .body_room import SMALL_BYTES
from .http1 import Connection

# Where clients of other services than OpenAI's put their token (Anthropic's, Azure's).
TOKEN_HEADERS = ("x-api-key", "api-key")


def install(app: Sanic, operations: tuple[Operation, ...], authenticator: Authenticator) -> None:
    """Let through requests of whom the authenticator knows, and what needs no token, unless a web page asks that.

    A browser adds no token by itself, so what has one was sent on purpose, whatever Host or Origin it names. What it
    asks before it sends what a page of another site wants is answered by `cors.py` alone.
    """
    open_paths = {operation.path for operation in operations if not operation.auth}

    # Before the route is looked for: whoever has no token does not learn which there are.
    @app.signal("http.routing.before")
    async def check(request: Request) -> None:
        request.ctx.correlation_id = correlation.take_or_make(request.headers.get(correlation.HEADER))
        request.ctx.started = time.monotonic()
        if cors.asks_beforehand(request):
            cors.answer(request)
        given = _tokens_of(request)
        if len(given) == 1 and (found := authenticator.principal_of(*given)) is not None:
            principal.asks(found, request.ip or None)
            _tell(request)
        elif request.path in open_paths:
            _refuse_web_pages(request)
            # Nothing that needs no token has a large body.
            if request.stream is not None:
                request.stream.request_max_size = SMALL_BYTES
        else:
            if request.stream is not None:
                request.stream.keep_alive = False  # pyright: ignore[reportAttributeAccessIssue]
            if len(given) > 1:
                raise Unauthorized(f"Authorization, {' and '.join(TOKEN_HEADERS)} name different tokens: send one")
            raise Unauthorized("send the header 'Authorization: Bearer <token>' with the token of this service")


def _tokens_of(request: Request) -> set[str]:
    """The tokens that a request shows; several headers may show the same one."""
    bearers = [value.partition(" ") for value in request.headers.getall("authorization", [])]
    shown = [given for scheme, _, given in bearers if scheme.lower() == "bearer"]
    shown += [value for name in TOKEN_HEADERS for value in request.headers.getall(name, [])]
    return {value.strip() for value in shown} - {""}


def _tell(request: Request) -> None:
    connection = getattr(request.stream, "protocol", None)
    if isinstance(connection, Connection):
        connection.authenticated()
        chunked = "transfer-encoding" in request.headers
        request.app.ctx.body_room.take(connection, request.headers.get("content-length"), chunked=chunked)


def _refuse_web_pages(request: Request) -> None:
    """Raise Forbidden where a page of another site asks, also one whose name was made to mean this machine."""
    host = request.headers.get("Host") or ""
    origin = request.headers.get("Origin")
    if origin is not None and not cors.is_named(request) and urlsplit(origin).netloc.lower() != host.lower():
        raise Forbidden("a web page of another site may not ask this: send no Origin header, or the token")
    if _is_loopback(request) and not _means_this_machine(host):
        raise Forbidden("the Host header names another machine: ask for localhost or 127.0.0.1, or send the token")


def _is_loopback(request: Request) -> bool:
    address = request.conn_info.sockname if request.conn_info is not None else None
    if not isinstance(address, tuple):
        return False
    found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _means_this_machine(host: str) -> bool:
    """Whether a Host is an address, which no name server can make mean something else, or this machine's own name."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    own = socket.gethostname().lower()
    if name in {"", "localhost", own, own.partition(".")[0]} or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
