"""Serve a Sanic application on a real loopback socket inside the test's own event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from sanic import Sanic


@contextlib.asynccontextmanager
async def serving(app: Sanic) -> AsyncIterator[str]:
    """Yields the base URL; the application's listeners run as in production."""
    Sanic.test_mode = True
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    # Its annotations say that the steps of a server are not awaitable; they are.
    server: Any = await app.create_server(
        sock=listener, return_asyncio_server=True, access_log=False, asyncio_server_kwargs={"start_serving": False}
    )
    assert server is not None
    await server.startup()
    await server.before_start()
    await server.start_serving()
    await server.after_start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        await server.before_stop()
        await server.close()
        await server.after_stop()
        Sanic._app_registry.pop(app.name, None)
