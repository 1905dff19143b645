"""Run one application in this process until SIGTERM or SIGINT."""

from __future__ import annotations

import errno
import socket

from sanic import Sanic

from . import auth, settings


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
    app.run(sock=listener, single_process=True, motd=False, access_log=False)
