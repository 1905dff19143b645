"""Run one application in this process until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket

from sanic import Request, Sanic

from . import auth, settings

_UNTIL_THE_LOOP_SERVES_SECONDS = 0.1


def listen(program: str, host: str, port: int, token: auth.Token | None) -> socket.socket:
    """A bound socket for the service. Ends the process with a clear message where that cannot or must not be."""
    if token is None and not auth.is_loopback(host):
        settings.stop(program, f"'host' is {host} but there is no api_token_file: without a token bind to 127.0.0.1")
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


def run(app: Sanic, listener: socket.socket) -> None:
    """Serve `app` on `listener`; returns after a graceful stop.

    One process: Sanic's manager neither notices nor replaces a killed worker (sanic#3062), systemd does both.
    """
    _stop_on_signals(app)
    app.run(sock=listener, single_process=True, register_sys_signals=False, motd=False, access_log=False)


def _stop_on_signals(app: Sanic) -> None:
    """Stop gracefully on SIGTERM and SIGINT, from the first answer on.

    Sanic takes requests before it takes signals, and its own handlers stop the loop at once: during the last step
    of the start that stop is used up, and a process that was asked to end serves on.
    """
    started, asked = asyncio.Event(), asyncio.Event()

    async def stop_when_asked() -> None:
        await asked.wait()
        await asyncio.sleep(_UNTIL_THE_LOOP_SERVES_SECONDS)
        app.stop(terminate=False)

    @app.after_server_start
    async def listen_for_signals(app: Sanic) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        app.ctx.stopper = loop.create_task(stop_when_asked(), name="stop on a signal")
        started.set()

    @app.on_request
    async def wait_until_started(_request: Request) -> None:
        await started.wait()
