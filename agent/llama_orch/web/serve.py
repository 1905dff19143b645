"""Run one application in this process until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from sanic import Sanic

from . import settings
from .http.http1 import Connection

_LOOK_AGAIN_SECONDS = 0.05


def listen(program: str, host: str, port: int) -> socket.socket:
    """A bound socket for the service. Ends the process with a clear message where that cannot be."""
    try:
        return bind(host, port)
    except OSError as error:
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        settings.stop(program, f"cannot listen on {host} port {port}: {reason}; set 'host' and 'port'")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port`; raises OSError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


async def create_server(app: Sanic, listener: socket.socket) -> Any:
    """A server of `app` that does not serve yet, with the bounds of `http1.py` on its connections."""
    # Its annotations say that the steps of a server are not awaitable; they are.
    return await app.create_server(
        sock=listener,
        protocol=Connection,
        return_asyncio_server=True,
        asyncio_server_kwargs={"start_serving": False},
    )


class Server:
    """One application on one socket in this process, from start to graceful stop.

    Sanic's own `run` lets the loop rest between its start and its serving, and a signal that comes meanwhile is lost;
    here the loop runs from the first step to the last. One process: Sanic's manager neither notices nor replaces a
    killed worker (sanic#3062), systemd does both.

    A service that starts no processes may take `uvloop.new_event_loop`. Those of uvloop are forked with libuv, which
    runs what libraries want done in a child, and one that waits for a lock there which another thread had (the hub's
    client does) keeps child and service waiting for ever; asyncio's own loop goes through `subprocess`, which does not.
    """

    def __init__(
        self,
        app: Sanic,
        listener: socket.socket,
        on_signal: Mapping[signal.Signals, Callable[[], None]] | None = None,
        *,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._app = app
        self._listener = listener
        self._new_loop = new_loop
        self._stopping = asyncio.Event()
        self._on_signal = on_signal or {signal.SIGTERM: self.stop, signal.SIGINT: self.stop}

    def stop(self) -> None:
        """Stop gracefully, after the start where that still goes on; more than once is once."""
        self._stopping.set()

    def run(self) -> None:
        """Serve until `stop`. Signals that are handled stay so until the process ends."""
        # Code and routes stay to the end: no collection, nor the last one at the exit, need look at them again.
        gc.freeze()
        gc.enable()
        loop = self._new_loop()
        asyncio.set_event_loop(loop)
        loop.run_until_complete(self._serve(loop))

    async def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        for number, action in self._on_signal.items():
            loop.add_signal_handler(number, action)
        server = await create_server(self._app, self._listener)
        await server.startup()
        await server.before_start()
        await server.start_serving()
        await server.after_start()
        await self._stopping.wait()
        await server.before_stop()
        server.close()
        await self._finish(server.connections)
        await server.after_stop()
        await loop.shutdown_asyncgens()

    async def _finish(self, connections: set[Any]) -> None:
        """Let running answers end, for as long as the application's graceful time-out."""
        deadline = time.monotonic() + self._app.config.GRACEFUL_SHUTDOWN_TIMEOUT
        while connections and time.monotonic() < deadline:
            for connection in list(connections):
                connection.close_if_idle()
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        for connection in list(connections):
            connection.abort()


def run(app: Sanic, listener: socket.socket) -> None:
    """Serve `app` on `listener` until SIGTERM or SIGINT; returns after a graceful stop."""
    Server(app, listener).run()
