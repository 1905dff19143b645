"""Server-sent events (WHATWG HTML, "Server-sent events"): one JSON object in each `data:` line."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from sanic import Request

from . import errors

KEEP_ALIVE_SECONDS = 15.0


@dataclass
class EventStream:
    """An answer that is sent as it happens. An item is a type of the contract, or a raw `data:` text."""

    items: AsyncIterator[BaseModel | str]


async def send(request: Request, stream: EventStream) -> None:
    """Send `stream`. What fails before the first item is a JSON error; after it, an error event and a cut line.

    A chunked body that ended cleanly would look complete to the client, so the connection is closed instead.
    """
    items = stream.items
    pending: asyncio.Task[Any] = asyncio.ensure_future(anext(items, None))
    response: Any = None
    try:
        response = await _open_when_first(request, pending)
        while (item := await _next_or_keep_alive(response, pending)) is not None:
            pending = asyncio.ensure_future(anext(items, None))
            text = item if isinstance(item, str) else item.model_dump_json()
            await response.send(f"data: {text}\n\n")
        await response.eof()
    except Exception as error:
        if response is None:
            raise
        body = errors.body_of(errors.as_api_error(error)).model_dump_json()
        await response.send(f"event: error\ndata: {body}\n\n")
        if request.transport is not None:
            request.transport.close()
    finally:
        pending.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await pending
        aclose = getattr(items, "aclose", None)
        if aclose is not None:
            await aclose()


async def _open_when_first(request: Request, first: asyncio.Task[Any]) -> Any:
    await asyncio.wait({first}, timeout=KEEP_ALIVE_SECONDS)
    if first.done():
        first.result()
    return await request.respond(
        content_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
    )


async def _next_or_keep_alive(response: Any, pending: asyncio.Task[Any]) -> BaseModel | str | None:
    while True:
        done, _ = await asyncio.wait({pending}, timeout=KEEP_ALIVE_SECONDS)
        if done:
            return pending.result()
        await response.send(": still here\n\n")
