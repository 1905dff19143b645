"""Vectors of texts: inputs are packed into as few batches as hold them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llama_orch.contract import inference as wire
from llama_orch.contract.errors import ApiError, BadRequest

from . import orders
from .generation import GenerationFailed
from .service import Loaded, Service


async def embed(
    service: Service, loaded: Loaded, body: wire.EmbeddingRequest, client: str, timeout: float | None
) -> tuple[list[list[float]], int]:
    """One vector of length 1 for each input, and the tokens read. Raises BadRequest, and ApiError on failure.

    `timeout` is in seconds; after it DeadlineExceeded is raised.
    """
    length = loaded.info.embedding_length
    if not length:
        raise BadRequest(
            "model: this one generates text and makes no embeddings; start a worker with a model made for them",
            code="model_makes_no_embeddings",
        )
    if body.dimensions is not None and body.dimensions > length:
        raise BadRequest(f"dimensions: {body.dimensions} is more than the {length} that the model gives")
    inputs = await orders.tokens_of(loaded, client, body.inputs, "input")
    for tokens in inputs:
        orders.check_room(loaded, tokens, "input", spare=0)
    vectors: list[list[float]] = []
    async with service.admitted(timeout):
        for batch in _batches(inputs, sequences=service.spec.slots, tokens=loaded.info.context):
            try:
                vectors += await service.between_steps(lambda batch=batch: loaded.engine.embed(batch))
            except GenerationFailed as error:
                raise ApiError(str(error), code="generation_failed") from None
    return [_shorten(vector, body.dimensions or length) for vector in vectors], sum(map(len, inputs))


def _batches(inputs: list[list[int]], *, sequences: int, tokens: int) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for one in inputs:
        if batch and (len(batch) == sequences or sum(map(len, batch)) + len(one) > tokens):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _shorten(vector: list[float], length: int) -> list[float]:
    """The first `length` numbers, brought to length 1 again, as models of the Matryoshka kind are made for."""
    if length == len(vector):
        return vector
    cut = vector[:length]
    norm = math.sqrt(sum(value * value for value in cut))
    return [value / norm for value in cut] if norm else cut
