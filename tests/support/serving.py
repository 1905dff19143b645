"""Serve a Sanic application on a real loopback socket inside the test's own event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

from sanic import Sanic

from llama_orch.web import serve


@contextlib.asynccontextmanager
async def serving(app: Sanic) -> AsyncIterator[str]:
    """Yields the base URL; the application's listeners run as in production."""
    Sanic.test_mode = True
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = await serve.create_server(app, listener)
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
