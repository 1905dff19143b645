"""The worker's operations: parse, call the service, shape the answer."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import aclosing

from pydantic import BaseModel
from sanic import Request

from llama_orch.contract import inference as wire
from llama_orch.contract import operations as ops
from llama_orch.contract.errors import BadRequest
from llama_orch.web.app import Routes
from llama_orch.web.events import EventStream

from . import embeddings, orders
from .constraint import constraint_of
from .generation import Constraint, Ending, Order, Piece
from .scope import Scopes
from .service import Loaded, Service
from .shapes import ChatShape, CompletionShape, usage_of
from .tools import plan_tools

DONE = "[DONE]"
LONGEST_TIMEOUT_SECONDS = 86_400.0


def build(service: Service) -> Routes:
    """Every operation of a worker, bound to `service`."""
    routes = Routes(ops.WORKER)
    scopes = Scopes(service.spec.gateways, shared=service.spec.reuse_across_scopes)

    @routes.handle(ops.WORKER_HEALTH)
    async def health(_: Request) -> wire.WorkerHealth:
        return service.health()

    @routes.handle(ops.SERVED_MODELS)
    async def models(_: Request) -> wire.ServedModelList:
        loaded = service.require_ready()
        served = wire.ServedModel(
            id=service.spec.model_name,
            created=service.started_at,
            context_per_slot=loaded.info.context,
            slots=service.spec.slots,
        )
        return wire.ServedModelList(data=[served])

    @routes.handle(ops.COMPLETIONS)
    async def completions(request: Request, body: wire.CompletionRequest) -> BaseModel | EventStream:
        loaded = service.require_ready(body.model)
        orders.require_text_model(loaded)
        scope = scopes.of(request)
        constraint = await asyncio.to_thread(constraint_of, body)
        await orders.check_constraint(loaded, constraint, "grammar" if body.grammar else "response_format")
        wanted = [one for prompt in body.prompts for one in await _completion(loaded, body, prompt, constraint, scope)]
        shape = CompletionShape(service.spec.model_name, loaded.engine)
        return await _answer(service, request, body, wanted, shape, prompts=len(body.prompts))

    @routes.handle(ops.CHAT_COMPLETIONS)
    async def chat(request: Request, body: wire.ChatRequest) -> BaseModel | EventStream:
        loaded = service.require_ready(body.model)
        orders.require_text_model(loaded)
        scope = scopes.of(request)
        plan = await asyncio.to_thread(plan_tools, loaded.template, body)
        constraint = plan.constraint or await asyncio.to_thread(constraint_of, body)
        await orders.check_constraint(loaded, constraint, "tools" if plan.constraint else "response_format")
        prompt = await orders.tokens_of_chat(loaded, plan.messages, plan.tools)
        room = orders.check_room(loaded, prompt, "messages")
        order = Order(
            prompt=prompt,
            limit=min(body.limit or room, room),
            sampling=orders.sampling_of(loaded, body, constraint),
            stops=body.stops,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            special=plan.render_special,
            scope=scope,
        )
        readers = [plan.reader() for _ in range(body.n)]
        shape = ChatShape(service.spec.model_name, loaded.engine, readers)
        return await _answer(service, request, body, orders.choices(order, body.n), shape, prompts=1)

    @routes.handle(ops.EMBEDDINGS)
    async def embed(request: Request, body: wire.EmbeddingRequest) -> wire.EmbeddingList:
        loaded = service.require_ready(body.model)
        vectors, tokens = await embeddings.embed(service, loaded, body, _timeout(request))
        return wire.EmbeddingList(
            model=service.spec.model_name,
            data=[
                wire.Embedding(index=index, embedding=_encode(vector, body.encoding_format))
                for index, vector in enumerate(vectors)
            ],
            usage=wire.Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens),
        )

    @routes.handle(ops.TOKENIZE)
    async def tokenize(_: Request, body: wire.TokenizeRequest) -> wire.Tokens:
        loaded = service.require_ready(body.model)
        if body.prompt is not None:
            tokens = await asyncio.to_thread(loaded.engine.tokenize, body.prompt, begin=body.add_special_tokens)
        else:
            tokens = await orders.tokens_of_chat(loaded, body.messages or [], None)
        return wire.Tokens(tokens=tokens, count=len(tokens), context_per_slot=loaded.info.context)

    return routes


async def _completion(
    loaded: Loaded, body: wire.CompletionRequest, prompt: str | list[int], constraint: Constraint | None, scope: str
) -> list[Order]:
    tokens = await orders.tokens_of(loaded, prompt)
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
