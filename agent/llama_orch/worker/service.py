"""The worker's life (loading, serving, draining) and the bridge between the event loop and the engine's thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from llama_orch.contract.errors import ApiError, BadRequest, Busy, DeadlineExceeded, NotFound, NotReady
from llama_orch.contract.inference import WorkerHealth
from llama_orch.contract.process import WorkerSpec

from .batching.batcher import Batcher, Item, Run
from .batching.slots import Slot, Slots
from .chat.templates import ChatTemplate
from .generation import Ending, Engine, ModelInfo, Order
from .metrics import Metrics
from .requests import bodies, names
from .requests.work_pool import WorkPool

log = logging.getLogger(__name__)

QUEUE_SECONDS = 300.0
# Beyond its slots a worker lets this many requests wait for each slot, and at least the second number.
QUEUE_PER_SLOT, QUEUE_LEAST = 4, 8
DRAINING = "the worker is draining and takes no new requests: ask another one"
STOPPED = "the worker was stopped before the answer was complete"
# How far back the speed that `/health` tells is measured.
SPEED_SECONDS = 5.0
# The engine's thread asks for the interpreter after each step; by default the other one may keep it for 5 ms.
SWITCH_SECONDS = 0.0005

# What reads texts leaves the interpreter for much of its time, what reads grammars never does.
TEXT_THREADS, GRAMMAR_THREADS = 4, 2
# CPU time for all texts of one request.
TEXT_SECONDS = 30.0

T = TypeVar("T")


class Loaded:
    """What there is once the model is loaded, and the threads that read requests: their texts, and their grammars."""

    def __init__(self, engine: Engine, info: ModelInfo, batcher: Batcher) -> None:
        self.engine = engine
        self.info = info
        self.batcher = batcher
        self.texts = WorkPool("texts", TEXT_THREADS, cpu_seconds=TEXT_SECONDS)
        self.grammars = WorkPool("grammars", GRAMMAR_THREADS)
        self.template = ChatTemplate(
            info.chat_template, bos_text=info.bos_text, eos_text=info.eos_text, scale=bodies.scale(info.context)
        )


class _Answer:
    """Items of one request's runs on their way to its client; all in the loop's thread."""

    def __init__(self) -> None:
        self.items: list[tuple[int, Item]] = []
        self.arrived = asyncio.Event()

    def put(self, index: int, item: Item) -> None:
        self.items.append((index, item))
        self.arrived.set()

    async def take(self) -> list[tuple[int, Item]]:
        """All that has come since the last time, at least one item."""
        while not self.items:
            self.arrived.clear()
            await self.arrived.wait()
        items, self.items = self.items, []
        return items


class _Live:
    """A run, where its items go and the slot that it holds."""

    def __init__(self, answer: _Answer, index: int, slot: Slot, asked_at: float) -> None:
        self.answer = answer
        self.index = index
        self.slot = slot
        self.asked_at = asked_at


class Service:
    """What the routes ask. All methods belong to the event loop's thread."""

    def __init__(
        self, spec: WorkerSpec, metrics: Metrics, make_engine: Callable[[], Engine], *, confined: bool = False
    ) -> None:
        self.spec = spec
        self.metrics = metrics
        self.started_at = int(time.time())
        self.aliases = names.aliases(spec)
        self.fingerprint = names.fingerprint(spec)
        self.slots = Slots(spec.slots, queue_limit=max(QUEUE_LEAST, QUEUE_PER_SLOT * spec.slots))
        self._make_engine = make_engine
        self._confined = confined
        self._loaded: Loaded | None = None
        # llama.cpp's context belongs to one thread.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._progress = 0.0
        self._closing = False
        self._live: dict[Run, _Live] = {}
        self._speeds: deque[tuple[float, int]] = deque()
        self._open_answers = 0
        self._answered = asyncio.Event()

    # --- life

    async def load(self) -> None:
        """Load the model and begin to serve it. Raises CannotServe, LoadAborted."""
        loop = asyncio.get_running_loop()

        def work() -> tuple[Engine, ModelInfo]:
            engine = self._make_engine()
            return engine, engine.load(self._on_progress)

        engine, info = await loop.run_in_executor(self._thread, work)

        def deliver(items: list[tuple[Run, Item]]) -> None:
            loop.call_soon_threadsafe(self._receive, items)

        batcher = Batcher(engine, info, self.spec.slots, deliver)
        self._loaded = Loaded(engine, info, batcher)
        sys.setswitchinterval(SWITCH_SECONDS)
        self._thread.submit(batcher.loop)
        if info.context > info.trained_context > 0:
            log.warning(
                "ctx_per_slot %d is more than the %d that the model was trained with",
                info.context,
                info.trained_context,
            )

    def _on_progress(self, part: float) -> bool:
        self._progress = part
        return not self._closing

    def health(self) -> WorkerHealth:
        """What the worker is doing."""
        reason = self._why_nobody_is_served()
        batcher = self._loaded.batcher if self._loaded else None
        if batcher is not None:
            batcher.ask()
        if self._closing:
            status = "draining"
        elif self._loaded is None:
            status = "loading"
        elif reason is not None:
            status = "overloaded"
        else:
            status = "busy" if self.slots.busy else "idle"
        return WorkerHealth(
            status=status,
            reason=reason,
            worker_id=self.spec.worker_id,
            percentage=100.0 if self._loaded else min(99.0, round(self._progress * 100, 1)),
            slots=self.spec.slots,
            slots_busy=self.slots.busy,
            queued=self.slots.queued,
            tokens_per_second=self._speed(),
            context_per_slot=self._loaded.info.context if self._loaded else None,
            confined=self._confined,
            engine_silent_seconds=round(batcher.silent_seconds, 3) if batcher else 0.0,
            longest_step_seconds=round(batcher.longest_step_seconds, 3) if batcher else 0.0,
        )

    def _why_nobody_is_served(self) -> str | None:
        if self._loaded is None:
            return None
        if seconds := self._loaded.batcher.stuck_seconds:
            return f"the engine has been at one step for {seconds:.0f} s"
        for pool, what in ((self._loaded.texts, "texts"), (self._loaded.grammars, "grammars and schemas")):
            if seconds := pool.stalled_seconds:
                return f"requests wait to have their {what} read, and none was for {seconds:.0f} s"
        return None

    def held_tokens(self) -> int:
        """Tokens that all slots hold together."""
        return self._loaded.batcher.scheduler.held_tokens if self._loaded else 0

    def require_ready(self, model: str | None = None) -> Loaded:
        """Raise NotReady while loading or draining, NotFound where `model` is not the one that is served."""
        if self._closing:
            raise NotReady(DRAINING)
        if self._loaded is None:
            percentage = self.health().percentage
            raise NotReady(
                f"the model is loading ({percentage:.0f} %): try again in a few seconds",
                headers={"Retry-After": "2"},
                percentage=percentage,
            )
        served = [self.spec.model_name, *self.aliases]
        if model is not None and model not in (*served, self.spec.model_ref):
            raise NotFound(f"model: this worker serves {' alias '.join(served)}", code="model_not_found", served=served)
        return self._loaded

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
        for run, live in self._live.items():
            run.unwanted = True
            live.answer.put(live.index, NotReady(STOPPED, code="stopped"))
        if self._loaded is not None:
            self._loaded.batcher.close()

    # --- answers

    async def answers(
        self, orders: list[Order], *, timeout: float | None = None
    ) -> AsyncGenerator[list[tuple[int, Item]], None]:
        """What comes for the orders, each item with its order's place; an Ending is the last item of each.

        Closing the generator ends its runs within one step. With `timeout`, in seconds, they end then with an error.
        Raises Busy, NotReady, DeadlineExceeded, and ApiError where the engine fails.
        """
        self._open_answers += 1
        outcome = "failed"
        answer = _Answer()
        runs = [Run(order) for order in orders]
        tasks: list[asyncio.Task[None]] = []
        expiry = _expire_after(timeout, answer)
        try:
            tasks += self._admit_all(runs, answer)
            left = len(orders)
            while left:
                items = await answer.take()
                for _, item in items:
                    if isinstance(item, ApiError):
                        raise item
                    if isinstance(item, Ending):
                        left -= 1
                        outcome = item.reason
                yield items
        except (asyncio.CancelledError, GeneratorExit):
            # A client that leaves after the last token has still got its answer.
            outcome = "cancelled" if outcome == "failed" else outcome
            raise
        except ApiError as error:
            outcome = _outcome(error)
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
            for run in runs:
                run.unwanted = True
            for task in tasks:
                task.cancel()
            self._open_answers -= 1
            self._answered.set()
            self.metrics.answers.labels(outcome).inc()

    def _admit_all(self, runs: list[Run], answer: _Answer) -> list[asyncio.Task[None]]:
        """Let the runs wait for their turns, in tasks that are returned. Raises Busy where there is no room for all."""
        batcher = self.require_ready().batcher
        self.slots.require_room(len(runs))
        asked_at = time.monotonic()

        async def admit(index: int, run: Run) -> None:
            try:
                slot = await self.slots.take(QUEUE_SECONDS)
            except ApiError as error:
                answer.put(index, error)
                return
            self._live[run] = _Live(answer, index, slot, asked_at)
            batcher.submit(run)

        return [asyncio.create_task(admit(index, run)) for index, run in enumerate(runs)]

    def _receive(self, items: list[tuple[Run, Item]]) -> None:
        for run, item in items:
            live = self._live[run]
            live.answer.put(live.index, item)
            if isinstance(item, Ending | ApiError):
                self._finished(run, item)
        self._note_speed()

    def _finished(self, run: Run, last: Ending | ApiError) -> None:
        # The slot belongs to the engine's work and not to the client: one that reads slowly keeps none.
        live = self._live.pop(run)
        live.slot.release()
        self.metrics.generated_tokens.inc(run.tokens)
        if isinstance(last, Ending):
            self.metrics.prompt_tokens.inc(last.prompt_tokens)
            self.metrics.reused_tokens.inc(last.reused)
        if run.first_token_at is not None:
            self.metrics.first_token.observe(run.first_token_at - live.asked_at)
            if run.tokens > 1:
                self.metrics.per_token.observe((time.monotonic() - run.first_token_at) / (run.tokens - 1))

    def _note_speed(self) -> None:
        now, generated = time.monotonic(), self._loaded.batcher.generated if self._loaded else 0
        self._speeds.append((now, generated))
        while self._speeds[0][0] < now - SPEED_SECONDS:
            self._speeds.popleft()

    def _speed(self) -> float:
        self._note_speed()
        return round((self._speeds[-1][1] - self._speeds[0][1]) / SPEED_SECONDS, 1)

    @contextlib.asynccontextmanager
    async def admitted(self, timeout: float | None) -> AsyncGenerator[None, None]:
        """Work that takes one slot and is no answer of the batcher's. Raises Busy, NotReady, DeadlineExceeded."""
        self._open_answers += 1
        try:
            async with asyncio.timeout(timeout):
                slot = await self.slots.take(QUEUE_SECONDS)
                try:
                    yield
                finally:
                    slot.release()
        except TimeoutError:
            raise _too_late(timeout) from None
        finally:
            self._open_answers -= 1
            self._answered.set()

    async def between_steps(self, work: Callable[[], T]) -> T:
        """Run a function in the engine's thread, between two steps, and return what it returns."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            if not done.done():
                done.set_exception(error) if error else done.set_result(result)  # pyright: ignore[reportArgumentType]

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                loop.call_soon_threadsafe(finish, None, error)
            else:
                loop.call_soon_threadsafe(finish, result, None)

        self.require_ready().batcher.submit(run)
        return await done


def _expire_after(timeout: float | None, answer: _Answer) -> asyncio.TimerHandle | None:
    if timeout is None:
        return None
    return asyncio.get_running_loop().call_later(timeout, answer.put, 0, _too_late(timeout))


def _too_late(timeout: float | None) -> DeadlineExceeded:
    return DeadlineExceeded(f"the answer was not complete within {timeout or 0:g} seconds, as the request asked")


def _outcome(error: ApiError) -> str:
    if isinstance(error, Busy):
        return "busy"
    if isinstance(error, DeadlineExceeded):
        return "deadline"
    if isinstance(error, NotReady):
        return "unavailable"
    return "refused" if isinstance(error, BadRequest) else "failed"
