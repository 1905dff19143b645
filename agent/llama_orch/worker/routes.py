"""The worker's operations: parse, call the service, shape the answer."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel
from sanic import Request

from llama_orch.contract import inference as wire
from llama_orch.contract import operations as ops
from llama_orch.web.app import Routes
from llama_orch.web.events import EventStream

from .generation import Sampling
from .service import Ending, Service

DONE = "[DONE]"


def build(service: Service) -> Routes:
    """Every operation of a worker, bound to `service`."""
    routes = Routes(ops.WORKER)

    @routes.handle(ops.WORKER_HEALTH)
    async def health(_: Request) -> wire.WorkerHealth:
        return service.health()

    @routes.handle(ops.SERVED_MODELS)
    async def models(_: Request) -> wire.ServedModelList:
        info = service.require_ready()
        served = wire.ServedModel(
            id=service.spec.model_name,
            created=service.started_at,
            context_per_slot=info.context,
            slots=service.spec.slots,
        )
        return wire.ServedModelList(data=[served])

    @routes.handle(ops.COMPLETIONS)
    async def completions(_: Request, body: wire.CompletionRequest) -> BaseModel | EventStream:
        service.require_ready(body.model)
        prompt = await service.tokens_of(body.prompt)
        answer = service.answer(prompt, body.max_tokens, _sampling(body), body.stops)
        shape = _CompletionShape(service.spec.model_name)
        if body.stream:
            return EventStream(_stream(answer, shape, len(prompt), _wants_usage(body)))
        return shape.whole(*await _collect(answer), prompt_tokens=len(prompt))

    @routes.handle(ops.CHAT_COMPLETIONS)
    async def chat(_: Request, body: wire.ChatRequest) -> BaseModel | EventStream:
        service.require_ready(body.model)
        prompt = await service.tokens_of(body.messages)
        limit = body.max_completion_tokens or body.max_tokens
        answer = service.answer(prompt, limit, _sampling(body), body.stops)
        shape = _ChatShape(service.spec.model_name)
        if body.stream:
            return EventStream(_stream(answer, shape, len(prompt), _wants_usage(body)))
        return shape.whole(*await _collect(answer), prompt_tokens=len(prompt))

    return routes


def _sampling(body: wire.CompletionRequest | wire.ChatRequest) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=secrets.randbelow(2**32 - 1) if body.seed is None else body.seed,
    )


def _wants_usage(body: wire.CompletionRequest | wire.ChatRequest) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


def _usage(prompt_tokens: int, ending: Ending) -> wire.Usage:
    return wire.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=ending.tokens,
        total_tokens=prompt_tokens + ending.tokens,
    )


class _CompletionShape:
    """The OpenAI shape of a completion, whole or in parts."""

    def __init__(self, model: str) -> None:
        self._common: dict[str, Any] = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, ending: Ending, *, prompt_tokens: int) -> wire.Completion:
        choice = wire.CompletionChoice(text=text, finish_reason=ending.reason)
        return wire.Completion(**self._common, choices=[choice], usage=_usage(prompt_tokens, ending))

    def opening(self) -> list[BaseModel]:
        return []

    def part(self, text: str) -> wire.Completion:
        return wire.Completion(**self._common, choices=[wire.CompletionChoice(text=text, finish_reason=None)])

    def last(self, ending: Ending) -> wire.Completion:
        choice = wire.CompletionChoice(text="", finish_reason=ending.reason)
        return wire.Completion(**self._common, choices=[choice])

    def usage(self, usage: wire.Usage) -> wire.Completion:
        return wire.Completion(**self._common, choices=[], usage=usage)


class _ChatShape:
    """The OpenAI shape of a chat's answer, whole or in parts."""

    def __init__(self, model: str) -> None:
        self._common: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, ending: Ending, *, prompt_tokens: int) -> wire.ChatCompletion:
        choice = wire.ChatChoice(message=wire.ChatAnswer(content=text), finish_reason=ending.reason)
        return wire.ChatCompletion(**self._common, choices=[choice], usage=_usage(prompt_tokens, ending))

    def opening(self) -> list[BaseModel]:
        return [self._chunk({"role": "assistant", "content": ""}, None)]

    def part(self, text: str) -> wire.ChatChunk:
        return self._chunk({"content": text}, None)

    def last(self, ending: Ending) -> wire.ChatChunk:
        return self._chunk({}, ending.reason)

    def usage(self, usage: wire.Usage) -> wire.ChatChunk:
        return wire.ChatChunk(**self._common, choices=[], usage=usage)

    def _chunk(self, delta: dict[str, str], reason: str | None) -> wire.ChatChunk:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return wire.ChatChunk(**self._common, choices=[choice])


async def _collect(answer: AsyncGenerator[str | Ending, None]) -> tuple[str, Ending]:
    texts: list[str] = []
    async with aclosing(answer):
        async for item in answer:
            if isinstance(item, Ending):
                return "".join(texts), item
            texts.append(item)
    raise AssertionError("an answer ends with an Ending or raises")


async def _stream(
    answer: AsyncGenerator[str | Ending, None],
    shape: _CompletionShape | _ChatShape,
    prompt_tokens: int,
    wants_usage: bool,
) -> AsyncIterator[BaseModel | str]:
    begun = False
    async with aclosing(answer):
        async for item in answer:
            # Not before the first item: until then a failure can still be answered with its own status.
            if not begun:
                begun = True
                for event in shape.opening():
                    yield event
            if isinstance(item, str):
                yield shape.part(item)
                continue
            yield shape.last(item)
            if wants_usage:
                yield shape.usage(_usage(prompt_tokens, item))
    yield DONE
