"""The worker as a process: its order, its port, its signals and its end."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry
from sanic import Sanic

from llama_orch.contract.process import (
    EXIT_KNOWN_FAILURE,
    EXIT_STOPPED,
    FAILURE_FILE,
    WorkerFailure,
    WorkerSpec,
)
from llama_orch.web import serve
from llama_orch.web.app import create_app
from llama_orch.web.auth import Token
from llama_orch.web.correlation import configure_logging
from llama_orch.web.tasks import OwnedTasks

from . import routes
from .generation import CannotServe, Engine, LoadAborted
from .metrics import Metrics
from .service import Service
from .spec import WrongOrder, read_spec, read_token, threads_for

log = logging.getLogger(__name__)

EXIT_CRASHED = 1
EXIT_WRONG_ORDER = 2
# How long answers that were cut may take to reach their clients.
FLUSH_SECONDS = 3.0
START_SECONDS = 0.1


def main() -> None:
    """Run one worker until it is asked to stop or cannot serve; never returns."""
    parser = argparse.ArgumentParser(prog="llama-orch-worker", description="Serve one model; started by a hive.")
    parser.add_argument("--spec", type=Path, required=True, help="spec.json, written by the hive")
    parser.add_argument("--token-fd", type=int, required=True, help="descriptor with the inference token")
    arguments = parser.parse_args()
    configure_logging()
    try:
        token = read_token(arguments.token_fd)
        spec = read_spec(arguments.spec)
    except WrongOrder as error:
        sys.stderr.write(f"llama-orch-worker: {error}\n")
        raise SystemExit(EXIT_WRONG_ORDER) from None
    folder = arguments.spec.parent
    # What a run before this one left would be taken for our own reason.
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    try:
        code = _Process(spec, token, _listen(spec)).run()
    except CannotServe as error:
        log.critical("cannot serve: %s; %s", error.message, error.what_to_do)
        _record(folder, error)
        code = EXIT_KNOWN_FAILURE
    logging.shutdown()
    # The engine's thread may still be inside llama.cpp, which must not run while its libraries are torn down.
    os._exit(code)


def _listen(spec: WorkerSpec) -> socket.socket:
    try:
        return serve.bind(spec.host, spec.port)
    except OSError as error:
        where = f"{spec.host} port {spec.port}"
        if error.errno == errno.EADDRINUSE:
            raise CannotServe(
                "port_in_use", f"{where} is in use by another process", "start the worker again on another port"
            ) from None
        raise CannotServe(
            "cannot_listen", f"cannot listen on {where}: {error.strerror}", "set the hive's 'host' to its own address"
        ) from None


def _record(folder: Path, error: CannotServe) -> None:
    failure = WorkerFailure(code=error.code, message=error.message, what_to_do=error.what_to_do)
    partial = folder / f".{FAILURE_FILE}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(failure.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FAILURE_FILE)


async def _ignore_signals(_: Sanic) -> None:
    # Sanic has just put the default actions back: asked twice, we would end by a signal while we end anyway.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class _Process:
    """One run of the server; ends by a signal or by a load that fails."""

    def __init__(self, spec: WorkerSpec, token: Token, listener: socket.socket) -> None:
        self._spec = spec
        self._listener = listener
        self._tasks = OwnedTasks()
        self._failure: BaseException | None = None
        self._leaving = False
        registry = CollectorRegistry()
        metrics = Metrics(registry)
        self._service = Service(spec, metrics, self._make_engine)

        async def refresh(_: Sanic) -> None:
            metrics.refresh(self._service.health(), self._service.slots.queued)

        self._app = create_app(
            "worker", "worker", routes.build(self._service), token=token, registry=registry, refresh_metrics=refresh
        )
        self._app.after_server_start(self._begin)
        self._app.before_server_stop(_ignore_signals)

    def run(self) -> int:
        """Serve until the end and return the exit code. Raises CannotServe."""
        log.info("worker %s listens on %s port %d", self._spec.worker_id, self._spec.host, self._spec.port)
        # Not web's own run: its signal handlers know neither draining nor answers that must be cut.
        self._app.run(
            sock=self._listener, single_process=True, register_sys_signals=False, motd=False, access_log=False
        )
        if isinstance(self._failure, CannotServe):
            raise self._failure
        if self._failure is not None:
            log.critical("the worker crashed", exc_info=self._failure)
            return EXIT_CRASHED
        return EXIT_STOPPED

    def _make_engine(self) -> Engine:
        # Imported here, in the engine's thread, so that the port answers before llama.cpp is read from disk.
        from .engine import LlamaEngine  # noqa: PLC0415

        return LlamaEngine(self._spec, threads_for(self._spec))

    async def _begin(self, _: Sanic) -> None:
        # Not sooner: Sanic has both signals ignored from just before this.
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: self._tasks.start(self._drain(), "drain"))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self._tasks.start(self._load(), "load")

    async def _load(self) -> None:
        try:
            await self._service.load()
        except LoadAborted:
            return
        except Exception as error:
            self._failure = error
            self._leave()
        else:
            log.info("worker %s serves %s", self._spec.worker_id, self._spec.model_name)

    async def _drain(self) -> None:
        log.info("draining")
        await self._service.drain()
        self._leave()

    def _stop(self) -> None:
        log.info("stopping")
        self._service.cut()
        self._leave()

    def _leave(self) -> None:
        # Once: a second stop of the loop would break off the first one's graceful end.
        if not self._leaving:
            self._leaving = True
            self._app.config.GRACEFUL_SHUTDOWN_TIMEOUT = FLUSH_SECONDS
            self._tasks.start(self._end(), "end")

    async def _end(self) -> None:
        # A stop of the loop during the last step of Sanic's start is lost, so let that step pass.
        await asyncio.sleep(START_SECONDS)
        self._app.stop(terminate=False)
