"""What the three clients share: the connection, the token, errors, server-sent events.

Whatever a service refuses, and whatever goes wrong on the way to it, is raised as `contract.errors.ApiError`.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, SecretStr, ValidationError
from yarl import URL

from llama_orch.contract import operations as ops
from llama_orch.contract.errors import BY_STATUS, ApiError, ErrorResponse, UpstreamFailed
from llama_orch.contract.operations import Operation
from llama_orch.contract.proof import Proof

from .bounded import TooLarge, read_whole
from .proving import NotProven, ProvingConnector

CONNECT_SECONDS = 10.0
# Services send a comment every 15 s on a quiet stream, so this long a silence is a dead line.
STREAM_SILENCE_SECONDS = 60.0
_LINE_LIMIT = 4 * 1024 * 1024
# Of an answer that is no stream: what a thousand hosts are described by, many times over.
MOST_BYTES = 256 * 1024 * 1024

T = TypeVar("T", bound=BaseModel)


class NoAnswer(ApiError):
    """The service could not be reached, or its line went dead. Nothing is known of what became of the request."""

    status = 503
    code: ClassVar[str] = "no_answer"


class NotTheService(UpstreamFailed):
    """What answers did not prove that it knows the token, which therefore was not sent."""

    code: ClassVar[str] = "not_proven"


class Service:
    """What the clients share: one connection pool, one token, one correlation id for all requests.

    `url` is the service's base, `timeout` in seconds is for a whole answer that is no stream, `most_bytes` its size.
    Use it as `async with`, or give it the `session` of whoever asks many services, whose it stays; one with a token
    needs a ProvingConnector. The token goes only to what has proven that it knows it, and only where an operation needs
    it.
    """

    part: ClassVar[str]

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        most_bytes: int = MOST_BYTES,
        correlation_id: str | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.correlation_id = correlation_id or uuid.uuid4().hex
        self._token = token
        self._most_bytes = most_bytes
        self._session = session

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            read_bufsize=_LINE_LIMIT,
            connector=ProvingConnector(self.part),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def proof(self, nonce: str) -> Proof:
        """What the service answers to this nonce; needs no token."""
        return await self._ask(ops.PROOF, Proof, query={"nonce": nonce})

    async def metrics(self) -> str:
        """The service's metrics in Prometheus' text format."""
        return (await self._send(ops.METRICS)).decode("utf-8", "replace")

    async def openapi(self) -> dict[str, Any]:
        """The service's own description."""
        return json.loads(await self._send(ops.OPENAPI))

    async def _ask(
        self,
        operation: Operation,
        answer: type[T],
        *,
        body: BaseModel | None = None,
        query: dict[str, str] | None = None,
        timeout: float | None = None,
        **parameters: str,
    ) -> T:
        data = await self._send(operation, body=body, query=query, timeout=timeout, **parameters)
        return self._parse(answer, data)

    async def _send(
        self,
        operation: Operation,
        *,
        body: BaseModel | None = None,
        query: dict[str, str] | None = None,
        timeout: float | None = None,
        **parameters: str,
    ) -> bytes:
        limits = aiohttp.ClientTimeout(total=timeout or self.timeout, sock_connect=CONNECT_SECONDS)
        try:
            async with self._request(operation, body, query, limits, parameters) as response:
                data = await read_whole(response, self._most_bytes)
                self._check(response, data)
                return data
        except NotProven as error:
            raise NotTheService(str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._no_answer(error, timeout or self.timeout) from error

    async def _stream(
        self, operation: Operation, *, body: BaseModel | None = None, silence: float, **parameters: str
    ) -> AsyncGenerator[str, None]:
        """The `data` of each event. Raises the error that the service sends in its place."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        try:
            async with self._request(operation, body, None, limits, parameters) as response:
                if response.status >= 300 or response.content_type != "text/event-stream":
                    self._check(response, await read_whole(response, self._most_bytes))
                    raise UpstreamFailed(f"{self.url} answered {response.content_type} where events were expected")
                async for kind, data in _events(response.content):
                    if kind == "error":
                        raise self._error_of(500, data.encode(), {})
                    yield data
        except NotProven as error:
            raise NotTheService(str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._no_answer(error, silence) from error

    def _request(
        self,
        operation: Operation,
        body: BaseModel | None,
        query: dict[str, str] | None,
        limits: aiohttp.ClientTimeout,
        parameters: dict[str, str],
    ) -> Any:
        if self._session is None:
            raise RuntimeError("use the client as 'async with'")
        headers = {"X-Correlation-Id": self.correlation_id}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None and operation.auth:
            headers["Authorization"] = f"Bearer {self._token}"
        path = operation.url(**{name: quote(value, safe="") for name, value in parameters.items()})
        return self._session.request(
            operation.method,
            URL(self.url + path, encoded=True).update_query(query or {}),
            data=None if body is None else _encode(body),
            headers=headers,
            timeout=limits,
            # A redirect would carry the token to whoever it names; our services never send one.
            allow_redirects=False,
        )

    def _check(self, response: aiohttp.ClientResponse, data: bytes) -> None:
        if not 200 <= response.status < 300:
            headers = {name.title(): value for name, value in response.headers.items()}
            raise self._error_of(response.status, data, headers)

    def _error_of(self, status: int, data: bytes, headers: dict[str, str]) -> ApiError:
        try:
            told = ErrorResponse.model_validate_json(data).error
        except ValidationError:
            return UpstreamFailed(
                f"{self.url} answered {status} without saying why: is there really a llama-orch service, "
                "and no proxy or other program, at this address?"
            )
        kind = BY_STATUS.get(status, ApiError)
        error = kind(told.message, code=told.code, headers=headers)
        error.details = {**told.details, "correlation_id": told.correlation_id}
        return error

    def _parse(self, answer: type[T], data: bytes | str) -> T:
        try:
            return answer.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the body"
            raise UpstreamFailed(
                f"{self.url} answered something that this version does not understand ({where}: {first['msg']}); "
                "are both sides of the same version?"
            ) from error

    def _no_answer(self, error: Exception, seconds: float) -> NoAnswer:
        if isinstance(error, aiohttp.ClientConnectorError):
            reason = why_not_connected(error)
        elif isinstance(error, TimeoutError):
            reason = f"nothing came within {seconds:g} s"
        elif isinstance(error, TooLarge):
            reason = str(error)
        elif isinstance(error, aiohttp.ClientPayloadError):
            reason = "the answer was cut off"
        elif isinstance(error, aiohttp.InvalidURL):
            reason = "this is no http:// address"
        else:
            reason = str(error) or type(error).__name__
        return NoAnswer(f"no answer from {self.url}: {reason}", url=self.url)


def why_not_connected(error: aiohttp.ClientConnectorError) -> str:
    """The system's own words for it, as "Connection refused"."""
    number = error.os_error.errno
    # Name resolution has negative numbers and words of its own.
    return os.strerror(number) if number and number > 0 else str(error.os_error.strerror or error.os_error)


async def _events(content: aiohttp.StreamReader) -> AsyncGenerator[tuple[str, str], None]:
    """Kind and data of each event (WHATWG HTML, "Server-sent events"); comments and other fields are skipped."""
    kind, lines = "message", []
    async for raw in content:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if lines:
                yield kind, "\n".join(lines)
            kind, lines = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            lines.append(value)
        elif name == "event":
            kind = value


def _encode(body: BaseModel) -> bytes:
    def reveal(value: object) -> object:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        raise TypeError(f"{type(value).__name__} has no JSON form")

    return json.dumps(body.model_dump(exclude_unset=True, exclude_none=True), default=reveal).encode()
