"""Connections over which a token goes only after their other end has proven that it knows it (`contract/proof.py`)."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from pydantic import ValidationError
from yarl import URL

from llama_orch.contract.operations import PROOF
from llama_orch.contract.proof import Proof, new_nonce

PROOF_SECONDS = 10.0
_MAX_ANSWER_BYTES = 16 * 1024
# The one that was just proven may be gone, or another request's, when it is asked for.
_ATTEMPTS = 16
_SCHEME = "Bearer "


class NotProven(aiohttp.ClientConnectionError):
    """What answers did not prove that it knows the token. The token was not sent to it; the message says why."""


class ProvingConnector(aiohttp.TCPConnector):
    """A pool that gives a request with a token no connection whose other end has not proven itself.

    Each connection is asked once: whoever takes over the address later answers on another one. A request without an
    `Authorization` goes out as it is. `part` is what should answer: queen, hive or worker. Made inside a running loop.
    """

    def __init__(self, part: str, **options: Any) -> None:
        super().__init__(**options)
        self._part = part
        self._proven: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()
        self._asked: dict[str, object] = {}
        self._session = aiohttp.ClientSession(
            connector=self,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=PROOF_SECONDS),
        )

    async def connect(self, req: aiohttp.ClientRequest, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:
        """As the pool's own; raises NotProven."""
        scheme, token = _split(req.headers.get("Authorization", ""))
        for _ in range(_ATTEMPTS):
            connection = await super().connect(req, traces, timeout)
            other_end = connection.protocol
            if scheme != _SCHEME:
                nonce = req.url.query.get("nonce", "")
                if nonce in self._asked:
                    self._asked[nonce] = other_end
                return connection
            if token in self._proven.get(other_end, ()):
                return connection
            # Into the pool, from where the question takes it.
            connection.release()
            await self._prove(req.url, token)
        raise NotProven(f"{_base(req.url)} closes each connection after one answer: what proved itself is gone by then")

    async def _prove(self, url: URL, token: str) -> None:
        nonce = new_nonce()
        self._asked[nonce] = None
        try:
            async with self._session.get(
                url.with_path(PROOF.path).with_query(nonce=nonce), allow_redirects=False
            ) as answer:
                status, length = answer.status, answer.content_length
                data = await answer.read() if length is not None and length <= _MAX_ANSWER_BYTES else b""
            other_end = self._asked[nonce]
        finally:
            del self._asked[nonce]
        if not _holds(status, data, token, self._part, nonce):
            raise NotProven(
                f"what answers at {_base(url)} (status {status}) does not prove that it knows this token, so nothing "
                f"was sent to it: is a llama-orch {self._part} of the same version there, and is the token its own?"
            )
        if other_end is not None:
            self._proven.setdefault(other_end, set()).add(token)

    def close(self, *, abort_ssl: bool = False) -> Any:
        """Close every connection; to be awaited."""
        self._session.detach()
        return super().close(abort_ssl=abort_ssl)


def _split(header: str) -> tuple[str, str]:
    return header[: len(_SCHEME)], header[len(_SCHEME) :]


def _holds(status: int, data: bytes, token: str, part: str, nonce: str) -> bool:
    if status != 200:
        return False
    try:
        return Proof.model_validate_json(data).holds(token, part, nonce)
    except ValidationError:
        return False


def _base(url: URL) -> str:
    return str(url.origin())
