"""Server-sent events (WHATWG HTML, "Server-sent events"): one JSON object in each `data:` line."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from sanic import Request

from . import errors

KEEP_ALIVE_SECONDS = 15.0
# A client that takes nothing for so long is gone, or might as well be.
STALLED_SECONDS = 120.0

Event = BaseModel | str


@dataclass
class EventStream:
    """An answer that is sent as it happens. An event is a type of the contract, or a raw `data:` text; events that
    come together are sent together.
    """

    items: AsyncIterator[Event] | AsyncIterator[list[Event]]


async def send(request: Request, stream: EventStream) -> None:
    """Send `stream`. What fails before the first item is a JSON error; after it, an error event and a cut line.

    A chunked body that ended cleanly would look complete to the client, so the connection is closed instead.
    """
    items = stream.items
    first: asyncio.Task[Any] = asyncio.ensure_future(anext(items, None))
    wire: _Wire | None = None
    try:
        await asyncio.wait({first}, timeout=KEEP_ALIVE_SECONDS)
        if first.done():
            first.result()
        wire = await _Wire.open(request)
        if request.method == "HEAD":
            # The head is sent with the first part.
            await wire.send("")
            await wire.end()
            return
        item = await first
        while item is not None:
            # An empty chunk would end the body.
            if text := _framed(item):
                await wire.send(text)
            item = await anext(items, None)
        await wire.end()
    except Exception as error:
        if wire is None:
            raise
        body = errors.body_of(errors.as_api_error(error)).model_dump_json()
        await wire.send(f"event: error\ndata: {body}\n\n")
        wire.cut()
    finally:
        if wire is not None:
            wire.close()
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await first
        aclose = getattr(items, "aclose", None)
        if aclose is not None:
            await aclose()


def _framed(item: Event | list[Event]) -> str:
    events = item if isinstance(item, list) else [item]
    return "".join(f"data: {event if isinstance(event, str) else event.model_dump_json()}\n\n" for event in events)


class _Wire:
    """The open answer. A timer keeps a silent line alive, and cuts one whose client takes nothing any more."""

    def __init__(self, request: Request, response: Any) -> None:
        # Its annotation says less than it can.
        self._transport: Any = request.transport
        self._response = response
        self._sending = False
        self._since = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(KEEP_ALIVE_SECONDS, self._look)
        self._comment: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, request: Request) -> _Wire:
        response = await request.respond(
            content_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        return cls(request, response)

    async def send(self, text: str) -> None:
        if self._comment is not None:
            await self._comment
        self._sending, self._since = True, time.monotonic()
        await self._response.send(text)
        self._sending, self._since = False, time.monotonic()

    async def end(self) -> None:
        if self._comment is not None:
            await self._comment
        await self._response.eof()

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def close(self) -> None:
        self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()

    def _look(self) -> None:
        quiet = time.monotonic() - self._since
        if self._sending and quiet > STALLED_SECONDS and self._transport is not None:
            self._transport.abort()
            return
        if not self._sending and quiet > KEEP_ALIVE_SECONDS / 2 and self._comment is None:
            self._comment = self._loop.create_task(self._say_still_here())
        self._timer = self._loop.call_later(KEEP_ALIVE_SECONDS, self._look)

    async def _say_still_here(self) -> None:
        try:
            await self._response.send(": still here\n\n")
            self._since = time.monotonic()
        finally:
            self._comment = None
