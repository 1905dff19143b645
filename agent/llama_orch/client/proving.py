"""Connections over which a token goes only after their other end has proven that it knows it (`contract/proof.py`)."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.connector import Connection
from pydantic import ValidationError
from yarl import URL

from llama_orch.contract.operations import PROOF
from llama_orch.contract.proof import Proof, new_nonce

PROOF_SECONDS = 10.0
_MAX_ANSWER_BYTES = 16 * 1024
_SCHEME = "Bearer "


class NotProven(aiohttp.ClientConnectionError):
    """What answers did not prove that it knows the token. The token was not sent to it; the message says why."""


class _Lent(Connection):
    """A connection for one question in between, made as aiohttp makes its own; who holds it keeps it."""

    def release(self) -> None:
        """The question is answered."""
        self._protocol = None

    def close(self) -> None:
        """The question was given up: what comes of it must not be taken for another's answer."""
        if self._protocol is not None:
            self._protocol.close()
        self._protocol = None


class ProvingConnector(aiohttp.TCPConnector):
    """A pool that gives a request with a token no connection whose other end has not proven itself.

    Each connection is asked once: whoever takes over the address later answers on another one. A request without an
    `Authorization` goes out as it is. `part` is what should answer: queen, hive or worker. Made inside a running loop.
    """

    def __init__(self, part: str, **options: Any) -> None:
        super().__init__(**options)
        self._part = part
        self._proven: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()
        self._lent: dict[str, _Lent] = {}
        self._session = aiohttp.ClientSession(
            connector=self,
            connector_owner=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=PROOF_SECONDS),
        )

    async def connect(self, req: aiohttp.ClientRequest, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:
        """As the pool's own; raises NotProven."""
        lent = self._lent.pop(req.url.query.get("nonce", ""), None)
        if lent is not None:
            return lent
        connection = await super().connect(req, traces, timeout)
        scheme, token = _split(req.headers.get("Authorization", ""))
        other_end = connection.protocol
        if scheme == _SCHEME and token not in self._proven.get(other_end, ()):
            try:
                await self._prove(connection, req.url, token)
            except BaseException:
                connection.close()
                raise
            self._proven.setdefault(other_end, set()).add(token)
        return connection

    async def _prove(self, connection: Any, url: URL, token: str) -> None:
        nonce = new_nonce()
        self._lent[nonce] = _Lent(self, connection._key, connection.protocol, connection._loop)
        try:
            async with self._session.get(
                url.with_path(PROOF.path).with_query(nonce=nonce), allow_redirects=False
            ) as answer:
                status, length = answer.status, answer.content_length
                data = await answer.read() if length is not None and length <= _MAX_ANSWER_BYTES else b""
        finally:
            if (not_taken := self._lent.pop(nonce, None)) is not None:
                not_taken.release()
        if not _holds(status, data, token, self._part, nonce):
            raise NotProven(
                f"what answers at {_base(url)} (status {status}) does not prove that it knows this token, so nothing "
                f"was sent to it: is a llama-orch {self._part} of the same version there, and is the token its own?"
            )
        if connection.protocol.should_close or connection.closed:
            raise NotProven(f"{_base(url)} closes each connection after one answer: what proved itself is gone by then")

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
