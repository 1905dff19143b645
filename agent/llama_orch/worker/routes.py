"""The worker's operations: parse, call the service, shape the answer."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing
from urllib.parse import unquote

from pydantic import BaseModel
from sanic import Request

from llama_orch.contract import inference as wire
from llama_orch.contract import operations as ops
from llama_orch.contract.errors import BadRequest
from llama_orch.web.app import Routes
from llama_orch.web.events import EventStream

from . import embeddings, orders
from .generation import Constraint, Ending, Order, Piece
from .requests.scope import Scopes
from .service import Loaded, Service
from .shapes import ChatShape, CompletionShape, usage_of

DONE = "[DONE]"
LONGEST_TIMEOUT_SECONDS = 86_400.0


def build(service: Service) -> Routes:
    """Every operation of a worker, bound to `service`."""
    routes = Routes(ops.WORKER)
    scopes = Scopes(service.spec.gateways, shared=service.spec.reuse_across_scopes)
    clients = Scopes(service.spec.gateways)

    @routes.handle(ops.WORKER_HEALTH)
    async def health(_: Request) -> wire.WorkerHealth:
        return service.health()

    @routes.handle(ops.SERVED_MODELS)
    async def models(_: Request) -> wire.ServedModelList:
        return wire.ServedModelList(data=[_served(service, service.require_ready())])

    @routes.handle(ops.SERVED_MODEL)
    async def model(_: Request, model: str) -> wire.ServedModel:
        # Clients write what stands between slashes as they would write any part of a path.
        return _served(service, service.require_ready(unquote(model)))

    @routes.handle(ops.COMPLETIONS)
    async def completions(request: Request, body: wire.CompletionRequest) -> BaseModel | EventStream:
        loaded = service.require_ready(body.model)
        orders.require_text_model(loaded)
        scope, client = scopes.of(request), clients.of(request)
        constraint = await orders.completion_constraint(loaded, client, body)
        prompts = await orders.tokens_of(loaded, client, body.prompts)
        wanted = [
            one
            for prompt, tokens in zip(body.prompts, prompts, strict=True)
            for one in _completion(loaded, body, prompt, tokens, constraint=constraint, scope=scope, client=client)
        ]
        shape = CompletionShape(service.spec.model_name, service.fingerprint, loaded.engine)
        return await _answer(service, request, body, wanted, shape, prompts=len(body.prompts))

    @routes.handle(ops.CHAT_COMPLETIONS)
    async def chat(request: Request, body: wire.ChatRequest) -> BaseModel | EventStream:
        loaded = service.require_ready(body.model)
        orders.require_text_model(loaded)
        scope, client = scopes.of(request), clients.of(request)
        plan, constraint = await orders.chat_plan(loaded, client, body)
        turn = body.turn_after(body.messages)
        prompt = await orders.tokens_of_chat(loaded, client, plan.messages, plan.tools, turn)
        room = orders.check_room(loaded, prompt, "messages")
        order = Order(
            prompt=prompt,
            limit=min(body.limit or room, room),
            sampling=orders.sampling_of(loaded, body, constraint),
            stops=body.stops,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            special=plan.render_special,
            scope=scope,
            client=client,
        )
        readers = [plan.reader() for _ in range(body.n)]
        shape = ChatShape(service.spec.model_name, service.fingerprint, loaded.engine, readers)
        return await _answer(service, request, body, orders.choices(order, body.n), shape, prompts=1)

    @routes.handle(ops.EMBEDDINGS)
    async def embed(request: Request, body: wire.EmbeddingRequest) -> wire.EmbeddingList:
        loaded = service.require_ready(body.model)
        vectors, tokens = await embeddings.embed(service, loaded, body, clients.of(request), _timeout(request))
        return wire.EmbeddingList(
            model=service.spec.model_name,
            data=[
                wire.Embedding(index=index, embedding=_encode(vector, body.encoding_format))
                for index, vector in enumerate(vectors)
            ],
            usage=wire.Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens),
        )

    @routes.handle(ops.TOKENIZE)
    async def tokenize(request: Request, body: wire.TokenizeRequest) -> wire.Tokens:
        loaded = service.require_ready(body.model)
        client = clients.of(request)
        if body.messages is not None:
            turn = body.turn_after(body.messages)
            tokens = await orders.tokens_of_chat(loaded, client, body.messages, None, turn)
        else:
            prompts = [body.prompt or ""]
            (tokens,) = await orders.tokens_of(loaded, client, prompts, begin=body.add_special_tokens)
        return wire.Tokens(tokens=tokens, count=len(tokens), context_per_slot=loaded.info.context)

    return routes


def _served(service: Service, loaded: Loaded) -> wire.ServedModel:
    return wire.ServedModel(
        id=service.spec.model_name,
        aliases=service.aliases,
        created=service.started_at,
        context_per_slot=loaded.info.context,
        slots=service.spec.slots,
    )


def _completion(
    loaded: Loaded,
    body: wire.CompletionRequest,
    prompt: str | list[int],
    tokens: list[int],
    *,
    constraint: Constraint | None,
    scope: str,
    client: str,
) -> list[Order]:
    room = orders.check_room(loaded, tokens, "prompt", spare=0 if body.max_tokens == 0 else 1)
    echo = None
    if body.echo:
        echo = prompt if isinstance(prompt, str) else orders.text_of(loaded, tokens)
    order = Order(
        prompt=tokens,
        limit=room if body.max_tokens is None else min(body.max_tokens, room),
        sampling=orders.sampling_of(loaded, body, constraint),
        stops=body.stops,
        logprobs=body.logprobs,
        echo=echo,
        scope=scope,
        client=client,
    )
    return orders.choices(order, body.n)


async def _answer(
    service: Service,
    request: Request,
    body: wire.CompletionRequest | wire.ChatRequest,
    wanted: list[Order],
    shape: CompletionShape | ChatShape,
    *,
    prompts: int,
) -> BaseModel | EventStream:
    most = service.slots.count + service.slots.queue_limit
    if len(wanted) > most:
        raise BadRequest(f"n: {len(wanted)} answers at once, but this worker takes {most}; ask for fewer")
    timeout = _timeout(request)
    if body.stream:
        return EventStream(_stream(service, wanted, shape, prompts, timeout, wants_usage=body.wants_usage))
    pieces: list[list[Piece]] = [[] for _ in wanted]
    endings: dict[int, Ending] = {}
    async with aclosing(service.answers(wanted, timeout=timeout)) as answers:
        async for items in answers:
            for index, item in items:
                if isinstance(item, Piece):
                    pieces[index].append(item)
                elif isinstance(item, Ending):
                    endings[index] = item
    ended = [endings[index] for index in range(len(wanted))]
    return shape.whole(pieces, ended, usage_of(ended, prompts=prompts))


async def _stream(
    service: Service,
    wanted: list[Order],
    shape: CompletionShape | ChatShape,
    prompts: int,
    timeout: float | None,
    *,
    wants_usage: bool,
) -> AsyncIterator[list[BaseModel | str]]:
    endings: dict[int, Ending] = {}
    begun = False
    async with aclosing(service.answers(wanted, timeout=timeout)) as answers:
        async for items in answers:
            # Not before the first items: until then a failure can still be answered with its own status.
            events = [] if begun else shape.opening(len(wanted))
            begun = True
            for index, item in items:
                if isinstance(item, Piece):
                    events += shape.part(index, item)
                elif isinstance(item, Ending):
                    endings[index] = item
                    events += shape.last(index, item)
            yield events
    if wants_usage:
        yield [shape.usage(usage_of([endings[index] for index in range(len(wanted))], prompts=prompts))]
    yield [DONE]


def _timeout(request: Request) -> float | None:
    """Seconds that the client gives the answer. Raises BadRequest where the header says no such thing."""
    text = request.headers.get(wire.DEADLINE_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT_SECONDS:
        raise BadRequest(f"{wire.DEADLINE_HEADER}: a number of seconds above 0, at most {LONGEST_TIMEOUT_SECONDS:g}")
    return seconds


def _encode(vector: list[float], form: str) -> list[float] | str:
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
