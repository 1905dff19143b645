"""Which web pages may ask a service: those of the origins that its settings name (WHATWG Fetch, "CORS protocol").

A browser asks beforehand whether a page may send what it wants to send, without a token: that is answered from the head
alone, for every path alike, so that nobody learns which there are. No answer allows cookies; nothing here reads any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sanic import HTTPResponse, Request, Sanic

from llama_orch.contract.errors import Forbidden

from . import correlation

# What the settings say where every origin is meant, and what browsers are told then.
EVERY = "*"
_METHODS = "GET, HEAD, POST, DELETE"
# What a page may read beside those that each may (Fetch, "CORS-safelisted response-header name").
_EXPOSED = f"{correlation.HEADER}, Retry-After"
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}(?:[ \t]*,[ \t]*[A-Za-z0-9-]{1,64}){0,63}")
_REMEMBERED_SECONDS = 600


class MayAsk(Exception):
    """A browser's question beforehand, whose answer is yes."""


class Origins:
    """The origins that the settings name."""

    def __init__(self, named: Iterable[str] = ()) -> None:
        self._named = frozenset(named)
        self.every = EVERY in self._named
        # Whether an answer is one page's and not another's.
        self.differ = bool(self._named) and not self.every

    def name(self, origin: str | None) -> bool:
        """Whether it is named itself: only such pages are answered what needs no token."""
        return origin is not None and origin.lower() in self._named

    def allow(self, origin: str | None) -> bool:
        """Whether pages of it may ask, with the token."""
        return origin is not None and (self.every or self.name(origin))


def install(app: Sanic, origins: Origins) -> None:
    """Tell browsers whose pages may read the answers of `app`."""
    app.ctx.origins = origins
    app.exception(MayAsk)(_say_yes)

    @app.on_response
    async def tell(request: Request, response: HTTPResponse) -> None:
        origin = request.headers.get("Origin")
        if origins.differ:
            response.headers.add("Vary", "Origin")
        if origin is not None and origins.allow(origin):
            response.headers["Access-Control-Allow-Origin"] = EVERY if origins.every else origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED


def is_named(request: Request) -> bool:
    """Whether a page of an origin that is named itself sent it."""
    return request.app.ctx.origins.name(request.headers.get("Origin"))


def asks_beforehand(request: Request) -> bool:
    """Whether it is a browser's question, before it sends what a page wants it to send."""
    headers = request.headers
    return request.method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers


def answer(request: Request) -> None:
    """Raise MayAsk, or Forbidden where pages of that origin may not."""
    if request.app.ctx.origins.allow(request.headers.get("Origin")):
        raise MayAsk
    raise Forbidden("web pages of this origin may not ask this service: name it in the setting cors_origins")


async def _say_yes(request: Request, _: Exception) -> HTTPResponse:
    headers = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": str(_REMEMBERED_SECONDS)}
    wanted = request.headers.get("Access-Control-Request-Headers") or ""
    # Clients send dozens of their own, and `*` would leave out Authorization.
    if _HEADER_NAMES.fullmatch(wanted):
        headers["Access-Control-Allow-Headers"] = wanted
        headers["Vary"] = "Access-Control-Request-Headers"
    return HTTPResponse(status=204, headers=headers)
