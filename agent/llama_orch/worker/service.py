"""The worker's life (loading, serving, draining) and the bridge between the event loop and the engine's thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from llama_orch.contract.errors import ApiError, BadRequest, Busy, NotFound, NotReady
from llama_orch.contract.inference import ChatMessage, WorkerHealth
from llama_orch.contract.process import WorkerSpec

from .chat import ChatTemplate
from .generation import Engine, FinishReason, GenerationFailed, ModelInfo, Sampling
from .metrics import Metrics
from .slots import Slots
from .text import TextAssembler

log = logging.getLogger(__name__)

QUEUE_SECONDS = 300.0
# Beyond its slots a worker lets this many requests wait for each slot, and at least the second number.
QUEUE_PER_SLOT, QUEUE_LEAST = 4, 8
DRAINING = "the worker is draining and takes no new requests: ask another one"
STOPPED = "the worker was stopped before the answer was complete"


@dataclass(frozen=True)
class Ending:
    """The last item of an answer; `tokens` were generated."""

    reason: FinishReason
    tokens: int


class _Run:
    """One generation, seen from both threads: it listens in the engine's and hands over to the loop's."""

    def __init__(self, stops: list[str]) -> None:
        self.items: asyncio.Queue[str | Ending | ApiError] = asyncio.Queue()
        self.tokens = 0
        self.first_token_at: float | None = None
        self._text = TextAssembler(stops)
        self._loop = asyncio.get_running_loop()
        # A plain attribute: written by the loop's thread, read by the engine's before each step.
        self._unwanted = False

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._unwanted = True

    def wanted(self) -> bool:
        return not self._unwanted

    def token(self, piece: bytes) -> bool:
        if self._unwanted:
            return False
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.tokens += 1
        if shown := self._text.feed(piece):
            self._hand_over(shown)
        return not self._text.stopped

    def generate(self, engine: Engine, prompt: list[int], limit: int, sampling: Sampling) -> None:
        """Run in the engine's thread to the end; failures become the last item."""
        try:
            reason = engine.generate(prompt, limit, sampling, self)
        except GenerationFailed as error:
            self._hand_over(ApiError(f"{error}; the next request may well succeed", code="generation_failed"))
        except Exception as error:
            log.exception("the engine failed")
            self._hand_over(ApiError(f"the engine failed with {type(error).__name__}", code="generation_failed"))
        else:
            if rest := self._text.finish():
                self._hand_over(rest)
            self._hand_over(Ending(reason, self.tokens))

    def _hand_over(self, item: str | Ending | ApiError) -> None:
        self._loop.call_soon_threadsafe(self.items.put_nowait, item)


class Service:
    """What the routes ask. All methods belong to the event loop's thread."""

    def __init__(self, spec: WorkerSpec, metrics: Metrics, make_engine: Callable[[], Engine]) -> None:
        self.spec = spec
        self.metrics = metrics
        self.started_at = int(time.time())
        self.slots = Slots(spec.slots, parallel=1, queue_limit=max(QUEUE_LEAST, QUEUE_PER_SLOT * spec.slots))
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._info: ModelInfo | None = None
        self._template: ChatTemplate | None = None
        # llama.cpp's context belongs to one thread.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._progress = 0.0
        self._closing = False
        self._runs: set[_Run] = set()
        self._open_answers = 0
        self._answered = asyncio.Event()

    async def load(self) -> None:
        """Load the model. Raises CannotServe, LoadAborted."""

        def work() -> tuple[Engine, ModelInfo]:
            engine = self._make_engine()
            return engine, engine.load(self._on_progress)

        self._engine, info = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        self._template = ChatTemplate(info.chat_template, bos_text=info.bos_text, eos_text=info.eos_text)
        self._info = info
        if info.context > info.trained_context > 0:
            log.warning(
                "ctx_per_slot %d is more than the %d that the model was trained with",
                info.context,
                info.trained_context,
            )

    def health(self) -> WorkerHealth:
        """What the worker is doing."""
        if self._closing:
            status = "draining"
        elif self._info is None:
            status = "loading"
        else:
            status = "busy" if self.slots.busy else "idle"
        return WorkerHealth(
            status=status,
            worker_id=self.spec.worker_id,
            percentage=100.0 if self._info else min(99.0, round(self._progress * 100, 1)),
            slots=self.spec.slots,
            slots_busy=self.slots.busy,
            context_per_slot=self._info.context if self._info else None,
        )

    def require_ready(self, model: str | None = None) -> ModelInfo:
        """Raise NotReady while loading or draining, NotFound where `model` is not the one that is served."""
        if self._closing:
            raise NotReady(DRAINING)
        if self._info is None:
            percentage = self.health().percentage
            raise NotReady(
                f"the model is loading ({percentage:.0f} %): try again in a few seconds",
                headers={"Retry-After": "2"},
                percentage=percentage,
            )
        names = [self.spec.model_name, *([self.spec.model_ref] if self.spec.model_ref else [])]
        if model is not None and model not in names:
            raise NotFound(f"model: this worker serves {' alias '.join(names)}", code="model_not_found", served=names)
        return self._info

    async def tokens_of(self, prompt: str | list[ChatMessage]) -> list[int]:
        """The tokens of a text or a conversation. Raises BadRequest where they do not fit into a slot."""
        info = self.require_ready()
        engine, template = self._engine, self._template
        assert engine is not None and template is not None  # noqa: S101  true once loaded, for the type checker

        def work() -> list[int]:
            if isinstance(prompt, str):
                return engine.tokenize(prompt, rendered=False)
            return engine.tokenize(template.render(prompt), rendered=True)

        # A long prompt takes a while, and the loop has others to serve.
        tokens = await asyncio.to_thread(work)
        field = "prompt" if isinstance(prompt, str) else "messages"
        if not tokens:
            raise BadRequest(f"{field}: nothing is left of it as tokens")
        if len(tokens) >= info.context:
            raise BadRequest(
                f"{field}: {len(tokens)} tokens, but a slot holds {info.context} and needs room for an answer; "
                "shorten it, or start the worker with a larger ctx_per_slot",
                code="context_length_exceeded",
                prompt_tokens=len(tokens),
                context_per_slot=info.context,
            )
        return tokens

    async def answer(
        self, prompt: list[int], max_tokens: int | None, sampling: Sampling, stops: list[str]
    ) -> AsyncGenerator[str | Ending, None]:
        """Texts as they come, then an Ending. Closing it ends the generation within one step.

        Raises Busy, NotReady, and ApiError where the engine fails.
        """
        self._open_answers += 1
        outcome = "failed"
        try:
            async with aclosing(self._generate(prompt, max_tokens, sampling, stops)) as items:
                async for item in items:
                    if isinstance(item, Ending):
                        outcome = item.reason
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            # A client that leaves after the last token has still got its answer.
            outcome = "cancelled" if outcome == "failed" else outcome
            raise
        except Busy:
            outcome = "busy"
            raise
        except NotReady:
            outcome = "unavailable"
            raise
        finally:
            self._open_answers -= 1
            self._answered.set()
            self.metrics.answers.labels(outcome).inc()

    async def _generate(
        self, prompt: list[int], max_tokens: int | None, sampling: Sampling, stops: list[str]
    ) -> AsyncGenerator[str | Ending, None]:
        engine, context = self._engine, self.require_ready().context
        assert engine is not None  # noqa: S101  true once loaded, for the type checker
        asked_at = time.monotonic()
        slot = await self.slots.take(QUEUE_SECONDS)
        run = _Run(stops)
        room = context - len(prompt)
        limit = room if max_tokens is None else min(max_tokens, room)
        self._runs.add(run)
        # The slot belongs to the engine's work and not to this generator: a client that reads slowly keeps no
        # slot, and one that leaves gives it back when the engine has noticed.
        work = asyncio.get_running_loop().run_in_executor(self._thread, run.generate, engine, prompt, limit, sampling)
        work.add_done_callback(lambda _: self._finished(run, slot.release, asked_at, len(prompt)))
        try:
            while True:
                item = await run.items.get()
                if isinstance(item, ApiError):
                    raise item
                yield item
                if isinstance(item, Ending):
                    return
        finally:
            run.cancel()

    def _finished(self, run: _Run, release: Callable[[], None], asked_at: float, prompt_tokens: int) -> None:
        release()
        self._runs.discard(run)
        self.metrics.prompt_tokens.inc(prompt_tokens)
        self.metrics.generated_tokens.inc(run.tokens)
        if run.first_token_at is not None:
            self.metrics.first_token.observe(run.first_token_at - asked_at)
            if run.tokens > 1:
                self.metrics.per_token.observe((time.monotonic() - run.first_token_at) / (run.tokens - 1))

    async def drain(self) -> None:
        """Take no new requests, send away who waits, and return when the running answers are complete."""
        self._closing = True
        self.slots.close(DRAINING)
        while self._open_answers:
            self._answered.clear()
            await self._answered.wait()

    def cut(self) -> None:
        """End everything now: running answers get an error, a load is given up at its next step."""
        self._closing = True
        self.slots.close(STOPPED)
        for run in self._runs:
            run.cancel()
            run.items.put_nowait(NotReady(STOPPED, code="stopped"))

    def _on_progress(self, part: float) -> bool:
        self._progress = part
        return not self._closing
