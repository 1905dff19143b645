"""Client of a worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from pydantic import BaseModel

from llama_orch.contract import inference
from llama_orch.contract import operations as ops
from llama_orch.contract.operations import Operation

from .service import NoAnswer, Service

# A worker answers nothing on an open line while it reads a long prompt, or while others hold its slots.
INFERENCE_SECONDS = 900.0


class Worker(Service):
    """One model, answering. Its token is the fleet's inference token."""

    part = "worker"

    async def health(self) -> inference.WorkerHealth:
        """Load progress and slots; needs no token."""
        return await self._ask(ops.WORKER_HEALTH, inference.WorkerHealth)

    async def models(self) -> list[inference.ServedModel]:
        """The model this worker serves."""
        return (await self._ask(ops.SERVED_MODELS, inference.ServedModelList)).data

    async def model(self, name: str) -> inference.ServedModel:
        """The model that this worker serves under `name`. Raises NotFound where it is another."""
        return await self._ask(ops.SERVED_MODEL, inference.ServedModel, model=name)

    async def complete(self, request: inference.CompletionRequest) -> inference.Completion:
        """Complete a text, all at once."""
        body = request.model_copy(update={"stream": False})
        return await self._ask(ops.COMPLETIONS, inference.Completion, body=body, timeout=INFERENCE_SECONDS)

    async def chat(self, request: inference.ChatRequest) -> inference.ChatCompletion:
        """Answer a conversation, all at once."""
        body = request.model_copy(update={"stream": False})
        return await self._ask(ops.CHAT_COMPLETIONS, inference.ChatCompletion, body=body, timeout=INFERENCE_SECONDS)

    async def embed(self, request: inference.EmbeddingRequest) -> inference.EmbeddingList:
        """Make vectors of texts."""
        return await self._ask(ops.EMBEDDINGS, inference.EmbeddingList, body=request, timeout=INFERENCE_SECONDS)

    async def tokenize(self, request: inference.TokenizeRequest) -> inference.Tokens:
        """The tokens of a text or a conversation."""
        return await self._ask(ops.TOKENIZE, inference.Tokens, body=request)

    async def complete_streamed(
        self, request: inference.CompletionRequest
    ) -> AsyncGenerator[inference.Completion, None]:
        """Complete a text, piece by piece."""
        async for data in self._generate(ops.COMPLETIONS, request):
            yield self._parse(inference.Completion, data)

    async def chat_streamed(self, request: inference.ChatRequest) -> AsyncGenerator[inference.ChatChunk, None]:
        """Answer a conversation, piece by piece."""
        async for data in self._generate(ops.CHAT_COMPLETIONS, request):
            yield self._parse(inference.ChatChunk, data)

    async def _generate(self, operation: Operation, request: BaseModel) -> AsyncGenerator[str, None]:
        body = request.model_copy(update={"stream": True})
        async for data in self._stream(operation, body=body, silence=INFERENCE_SECONDS):
            if data == "[DONE]":
                return
            yield data
        raise NoAnswer(f"the answer of {self.url} ended before it was whole", url=self.url)
