"""The application factory: routes bound to the contract's operations, auth, errors, metrics, description."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import BaseModel, ValidationError
from sanic import HTTPResponse, Request, Sanic

from llama_orch.base.tokens import Token
from llama_orch.contract.errors import BadRequest
from llama_orch.contract.operations import METRICS, OPENAPI, PROOF, Operation
from llama_orch.contract.proof import NONCE, Proof, proof_of

from . import correlation, cors, errors, openapi
from .events import EventStream, send
from .http import connections, gate, http1
from .http.body_room import SMALL_BYTES, BodyRoom
from .principal import ADMIN, OneToken, Principal
from .rendered import Rendered
from .scrape import Scrape
from .tasks import OwnedTasks

MAX_BODY_BYTES = SMALL_BYTES
LEAST_BYTES_OF_A_PART = 8
# Counts until the first byte of an answer, so it must exceed the longest wait for one (a model that loads).
RESPONSE_TIMEOUT_SECONDS = 900
GRACEFUL_STOP_SECONDS = 10.0

Handler = Callable[..., Coroutine[Any, Any, BaseModel | Rendered | EventStream]]


class Routes:
    """Handlers by operation. A handler takes the request, the parsed body where there is one, and the path's
    parameters by name; it returns a type of the contract, Rendered where it has made one to text already, or an
    EventStream.
    """

    def __init__(self, operations: tuple[Operation, ...]) -> None:
        self.operations = operations
        self.handlers: dict[Operation, Handler] = {}

    def handle(self, operation: Operation) -> Callable[[Handler], Handler]:
        """Decorator: serve `operation` with this function."""

        def register(handler: Handler) -> Handler:
            self.handlers[operation] = handler
            return handler

        return register


def create_app(
    name: str,
    part: str,
    routes: Routes,
    *,
    token: Token,
    cors_origins: Iterable[str] = (),
    registry: CollectorRegistry,
    refresh_metrics: Callable[[Sanic], Awaitable[None]] | None = None,
    identity: str | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    principal: Principal = ADMIN,
) -> Sanic:
    """A Sanic application that serves every operation of `routes` and nothing else.

    `part` is queen, hive or worker: the prefix of its metrics. Who has `token` is `principal`. `refresh_metrics`
    rebuilds gauges at a scrape. Its `ctx.tasks` owns every change that a request began; who stops it cancels them.
    `identity` is the name that it proves itself by, where there is more than one of its part. A larger body than
    `max_body_bytes` is refused.
    Raises ValueError where an operation has no handler.

    Web pages of `cors_origins` may ask it.
    """
    app = Sanic(name, configure_logging=False, request_class=http1.PlainRequest)
    app.config.update(
        REQUEST_MAX_SIZE=max_body_bytes,
        # Of silence; `http1.py` bounds a head and a body as a whole.
        REQUEST_TIMEOUT=30,
        RESPONSE_TIMEOUT=RESPONSE_TIMEOUT_SECONDS,
        KEEP_ALIVE_TIMEOUT=30,
        GRACEFUL_SHUTDOWN_TIMEOUT=GRACEFUL_STOP_SECONDS,
        ACCESS_LOG=False,
        MOTD=False,
        FALLBACK_ERROR_FORMAT="json",
    )
    app.ctx.connections = connections.OpenConnections(most=connections.most_with_descriptors())
    app.ctx.body_room = BodyRoom(max_body_bytes)
    errors.install(app)
    _observe(app, part, registry)
    app.ctx.tasks = OwnedTasks()
    gate.install(app, routes.operations, OneToken(token, principal))
    cors.install(app, cors.Origins(cors_origins))
    handlers: dict[Operation, Handler] = {
        METRICS: _scraper(app, registry, refresh_metrics),
        OPENAPI: _describer(f"llama-orch {part}", routes.operations),
        PROOF: _prover(part, identity or part, token),
        **routes.handlers,
    }
    for operation in routes.operations:
        if operation not in handlers:
            raise ValueError(f"no handler for {operation.method} {operation.path}")
        _serve(app, operation, handlers[operation])
    return app


def _serve(app: Sanic, operation: Operation, handler: Handler) -> None:
    async def endpoint(request: Request, **parameters: str) -> HTTPResponse | None:
        # What is OpenAI's is asked by clients that are not ours, and with what their other servers want to know.
        unknown = set() if operation.path.startswith("/v1/") else set(request.args) - set(operation.query)
        if unknown:
            raise BadRequest(f"unknown query parameters: {', '.join(sorted(unknown))[:200]}")
        if operation.request is not None:
            parameters["body"] = _parse(request, operation)  # pyright: ignore[reportArgumentType]
            # It is there twice now, and may be large.
            request.body = b""
        try:
            work = handler(request, **parameters)
            tasks: OwnedTasks = request.app.ctx.tasks
            result = await (tasks.finish(work, operation.name) if operation.changes else work)
            if isinstance(result, EventStream):
                await send(request, result)
                return None
        finally:
            request.app.ctx.body_room.give_back(getattr(request.stream, "protocol", None))
        answer = result if isinstance(result, Rendered) else Rendered(result.model_dump_json().encode())
        return HTTPResponse(answer.body, content_type=answer.content_type)

    path = operation.path.replace("{", "<").replace("}", ":path>" if operation.slashes else ":str>")
    app.add_route(endpoint, path, methods=_methods(operation), name=operation.name)


def _methods(operation: Operation) -> list[str]:
    # Whatever can be read can be asked for without its content (RFC 9110, 9.3.2); Sanic leaves that out by itself.
    return ["GET", "HEAD"] if operation.method == "GET" else [operation.method]


def _parse(request: Request, operation: Operation) -> BaseModel:
    assert operation.request is not None  # noqa: S101  the caller's condition, for the type checker
    body: bytes = request.body or b""
    if not body and operation.empty_body_ok:
        body = b"{}"
    if not body:
        raise BadRequest("the body is empty: send a JSON object with Content-Type: application/json")
    # All of them are made before any is looked at, and small ones take many times their bytes and their time.
    if len(body) > SMALL_BYTES and body.count(b"[") + body.count(b"{") > len(body) // LEAST_BYTES_OF_A_PART:
        raise BadRequest("the body is large and has hardly anything but lists and objects: send less at once")
    try:
        return operation.request.model_validate_json(body)
    except ValidationError as error:
        raise errors.from_validation(error) from None


def _describer(title: str, operations: tuple[Operation, ...]) -> Handler:
    # Made when it is first asked for: it costs a start what few starts are asked for.
    made = functools.cache(lambda: json.dumps(openapi.describe(title, operations)).encode())

    async def describe(_request: Request) -> Rendered:
        # By a thread: it takes some hundredths of a second, in which the loop would answer nobody.
        return Rendered(await asyncio.to_thread(made))

    return describe


def _scraper(app: Sanic, registry: CollectorRegistry, refresh: Callable[[Sanic], Awaitable[None]] | None) -> Handler:
    scrape = Scrape(registry, functools.partial(refresh, app) if refresh is not None else None)

    async def metrics(_request: Request) -> Rendered:
        return Rendered(await scrape.text(), "text/plain; version=0.0.4; charset=utf-8")

    return metrics


def _prover(part: str, name: str, token: Token) -> Handler:
    async def prove(request: Request) -> Proof:
        given = request.args.getlist("nonce") or []
        if len(given) != 1 or not re.fullmatch(NONCE, given[0]):
            raise BadRequest("nonce: give one of 22 to 64 letters, digits, '-' and '_', chosen at random")
        proof, *also = (proof_of(secret, part, name, given[0]) for secret in token.reveal_all())
        return Proof(name=name, proof=proof, also=also)

    return prove


def _observe(app: Sanic, part: str, registry: CollectorRegistry) -> None:
    served = Counter(
        f"llama_orch_{part}_http_requests",
        "Requests answered, by operation and status",
        ["operation", "status"],
        registry=registry,
    )
    seconds = Histogram(
        f"llama_orch_{part}_http_request_duration_seconds",
        "Time until the answer began",
        ["operation"],
        registry=registry,
    )

    @app.on_response
    async def record(request: Request, response: HTTPResponse) -> None:
        response.headers[correlation.HEADER] = getattr(request.ctx, "correlation_id", correlation.current())
        name = request.route.name.rpartition(".")[2] if request.route else "none"
        served.labels(name, str(response.status)).inc()
        if hasattr(request.ctx, "started"):
            seconds.labels(name).observe(time.monotonic() - request.ctx.started)
