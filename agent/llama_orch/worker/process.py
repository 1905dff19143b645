"""The worker as a process: its order, its port, its signals and its end."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop
from prometheus_client import CollectorRegistry
from sanic import Sanic

from llama_orch.base.tokens import Token
from llama_orch.contract.process import EXIT_KNOWN_FAILURE, EXIT_STOPPED, FAILURE_FILE, WorkerFailure, WorkerSpec
from llama_orch.web import serve
from llama_orch.web.app import create_app
from llama_orch.web.correlation import configure_logging
from llama_orch.web.principal import CLIENT
from llama_orch.web.tasks import OwnedTasks

from . import confinement, routes
from .generation import CannotServe, Engine, LoadAborted
from .metrics import Metrics
from .requests import bodies
from .service import Service
from .spec import WrongOrder, read_spec, read_token, threads_for

log = logging.getLogger(__name__)

EXIT_CRASHED = 1
EXIT_WRONG_ORDER = 2
# How long answers that were cut may take to reach their clients.
FLUSH_SECONDS = 3.0


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
    folder = arguments.spec.absolute().parent
    try:
        confinement.prepare(spec, folder)
    except OSError as error:
        sys.stderr.write(f"llama-orch-worker: cannot make {error.filename}: {error.strerror}\n")
        raise SystemExit(EXIT_WRONG_ORDER) from None
    # What a run before this one left would be taken for our own reason.
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    try:
        listener = _listen(spec)
        confined = confinement.confine(spec, folder)
        code = _Process(spec, token, listener, confined=confined).run()
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
    partial = folder / f"{FAILURE_FILE}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(failure.model_dump_json())
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FAILURE_FILE)


class _Process:
    """One run of the server; ends by a signal or by a load that fails."""

    def __init__(self, spec: WorkerSpec, token: Token, listener: socket.socket, *, confined: bool) -> None:
        self._spec = spec
        self._failure: BaseException | None = None
        registry = CollectorRegistry()
        metrics = Metrics(registry)
        self._service = Service(spec, metrics, self._make_engine, confined=confined)

        async def refresh(_: Sanic) -> None:
            metrics.refresh(self._service.health(), self._service.held_tokens())

        self._app = create_app(
            "worker",
            "worker",
            routes.build(self._service),
            token=token,
            cors_origins=spec.cors_origins,
            registry=registry,
            refresh_metrics=refresh,
            identity=spec.worker_id,
            max_body_bytes=bodies.most_bytes_of(spec),
            principal=CLIENT,
        )
        self._tasks: OwnedTasks = self._app.ctx.tasks
        self._app.after_server_start(self._begin)
        self._server = serve.Server(
            self._app,
            listener,
            {signal.SIGUSR1: self._begin_draining, signal.SIGTERM: self._stop, signal.SIGINT: self._stop},
            new_loop=uvloop.new_event_loop,
        )

    def run(self) -> int:
        """Serve until the end and return the exit code. Raises CannotServe."""
        log.info("worker %s listens on %s port %d", self._spec.worker_id, self._spec.host, self._spec.port)
        self._server.run()
        if isinstance(self._failure, CannotServe):
            raise self._failure
        if self._failure is not None:
            log.critical("the worker crashed", exc_info=self._failure)
            return EXIT_CRASHED
        return EXIT_STOPPED

    def _make_engine(self) -> Engine:
        # Imported here, in the engine's thread, so that the port answers before llama.cpp is read from disk.
        from .llama.engine import LlamaEngine  # noqa: PLC0415

        return LlamaEngine(self._spec, threads_for(self._spec))

    async def _begin(self, _: Sanic) -> None:
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

    def _begin_draining(self) -> None:
        self._tasks.start(self._drain(), "drain")

    async def _drain(self) -> None:
        log.info("draining")
        await self._service.drain()
        self._leave()

    def _stop(self) -> None:
        log.info("stopping")
        self._service.cut()
        self._leave()

    def _leave(self) -> None:
        self._app.config.GRACEFUL_SHUTDOWN_TIMEOUT = FLUSH_SECONDS
        self._server.stop()
