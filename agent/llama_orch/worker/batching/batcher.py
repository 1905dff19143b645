"""The engine's thread: takes orders in, computes step after step for all of them together, hands out what comes."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable

from llama_orch.contract.errors import ApiError, BadRequest
from llama_orch.contract.process import BATCH_TOKENS

from ..generation import (  # fmt: skip
    Ending,
    Engine,
    FinishReason,
    GenerationFailed,
    Logprob,
    ModelInfo,
    Order,
    Piece,
    Sampler,
    TooAmbiguous,
    WrongGrammar,
)
from ..scheduler import Scheduler, Step
from .grammar_share import GrammarShare
from .text import TextAssembler

log = logging.getLogger(__name__)

# How long those who generate may wait for others' prompts: more where more wait for their first token. And the least
# that a step reads of them.
PROMPT_SECONDS, MOST_PROMPT_SECONDS, LEAST_PROMPT = 0.2, 0.5, 32

# Longer for one step, and no request gets through.
STUCK_SECONDS = 60.0

Item = Piece | Ending | ApiError


class Run:
    """One order under way. The engine's thread fills it; `unwanted` may be set by any."""

    def __init__(self, order: Order) -> None:
        self.order = order
        # A plain attribute: read before each step.
        self.unwanted = False
        self.tokens = 0
        self.began_at = time.monotonic()
        self.first_token_at: float | None = None
        self.sequence = -1
        self.sampler: Sampler | None = None
        self.text = TextAssembler(order.stops)
        self.logprobs: list[Logprob] = []


class Batcher:
    """Runs orders on the engine, at most as many at a time as there are slots.

    `deliver` gets what a step brought, in the engine's thread: each run with its items; the last item of a run is an
    Ending or an ApiError.
    """

    def __init__(
        self, engine: Engine, info: ModelInfo, slots: int, deliver: Callable[[list[tuple[Run, Item]]], None]
    ) -> None:
        self._engine = engine
        self._deliver = deliver
        self.scheduler = Scheduler(slots, can_copy=info.can_copy)
        self._inbox: queue.SimpleQueue[Run | Callable[[], None] | None] = queue.SimpleQueue()
        self._runs: dict[int, Run] = {}
        self._items: list[tuple[Run, Item]] = []
        self._closed = False
        # Tokens generated since the start; read by other threads.
        self.generated = 0
        # Prompt tokens for each second of a step, as measured.
        self._reading_speed = 0.0
        # What the longest step took, those of the warm-up too; read by other threads.
        self.longest_step_seconds = info.step_seconds
        self._step_began: float | None = None
        self._asked_at: float | None = None
        self._share = GrammarShare()
        # Runs that have a slot and wait until their client's grammars have rested.
        self._held_back: list[Run] = []

    @property
    def stuck_seconds(self) -> float:
        """How long the present step has taken; 0.0 while that is usual. From any thread."""
        began = self._step_began
        seconds = time.monotonic() - began if began is not None else 0.0
        return seconds if seconds > STUCK_SECONDS else 0.0

    @property
    def silent_seconds(self) -> float:
        """How long the engine's thread has shown no sign of life: ended no step, or not answered `ask`. From any."""
        signs = [at for at in (self._step_began, self._asked_at) if at is not None]
        return time.monotonic() - min(signs) if signs else 0.0

    def ask(self) -> None:
        """Ask the engine's thread for a sign of life, where no question waits. From one other thread."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self.submit(self._live_on)

    def _live_on(self) -> None:
        self._asked_at = None

    def submit(self, work: Run | Callable[[], None]) -> None:
        """Take in an order, or a function that is to run between two steps. From any thread."""
        self._inbox.put(work)

    def close(self) -> None:
        """End `loop` after its present step. From any thread."""
        self._closed = True
        self._inbox.put(None)

    def loop(self) -> None:
        """Work until `close`; belongs to the thread that loaded the model."""
        while not self._closed:
            self._take_in()
            if self._closed:
                return
            self._drop_unwanted()
            self._begin_held_back()
            try:
                self._timed(self._step)
            except Exception:
                # Nobody knows what the context holds now: begin anew rather than answer wrongly.
                log.exception("a step failed")
                for run in list(self._runs.values()):
                    self._fail(run, _broken())
            if self._items:
                items, self._items = self._items, []
                self._deliver(items)

    def _timed(self, work: Callable[[], None]) -> None:
        self._step_began = time.monotonic()
        try:
            work()
        finally:
            self.longest_step_seconds = max(self.longest_step_seconds, time.monotonic() - self._step_began)
            self._step_began = None

    def _take_in(self) -> None:
        while not self._closed:
            try:
                # With nothing to do, wait for something.
                work = self._inbox.get(block=not self._runs and not self._items and not self._held_back)
            except queue.Empty:
                return
            if isinstance(work, Run):
                self._held_back.append(work)
                self._begin_held_back()
            elif work is not None:
                self._timed(work)

    def _begin_held_back(self) -> None:
        for run in list(self._held_back):
            if self._rests(run):
                continue
            self._held_back.remove(run)
            try:
                self._begin(run)
            except Exception:
                log.exception("an order could not be begun")
                if self._runs.get(run.sequence) is run:
                    self._fail(run, _broken())
                else:
                    self._items.append((run, _broken()))

    def _rests(self, run: Run) -> bool:
        """Whether a run's grammar waits for others' answers: its client's grammars have had their share."""
        client = run.order.client
        if run.order.sampling.constraint is None or run.unwanted:
            return False
        beside = any(other.order.client != client for other in self._runs.values())
        return beside and self._share.rests(client, time.monotonic())

    def _begin(self, run: Run) -> None:
        order = run.order
        run.began_at = time.monotonic()
        try:
            run.sampler = self._engine.sampler(order.sampling)
        except WrongGrammar as error:
            self._items.append((run, BadRequest(f"grammar: {error}", code="wrong_grammar")))
            return
        wants_all = order.echo is not None and order.logprobs is not None
        run.sequence, kept = self.scheduler.start(order.prompt, wants_all=wants_all, scope=order.scope)
        self._runs[run.sequence] = run
        if not self._engine.keep(run.sequence, kept):
            self.scheduler.forget(run.sequence)

    def _drop_unwanted(self) -> None:
        for run in [run for run in self._runs.values() if run.unwanted]:
            self._end(run, "stop")

    def _step(self) -> None:
        resting = {run.sequence for run in self._runs.values() if self._rests(run)}
        step = self.scheduler.next(BATCH_TOKENS, self._room_for_prompts(), resting)
        if resting and not step.parts and not step.copies:
            # Nobody else has anything to do.
            step = self.scheduler.next(BATCH_TOKENS, self._room_for_prompts())
        for copy in step.copies:
            if not self._engine.copy(copy.source, copy.target, copy.count):
                self.scheduler.forget(copy.target)
                return
        if not step.parts:
            return
        began = time.monotonic()
        try:
            self._engine.decode(step.parts)
        except GenerationFailed as error:
            for part in step.parts:
                self._fail(self._runs[part.sequence], _failed(error))
            return
        self._measure(step, time.monotonic() - began)
        self.scheduler.done(step)
        self._draw(step)

    def _room_for_prompts(self) -> int:
        generating = self.scheduler.generating
        if not generating:
            return BATCH_TOKENS
        seconds = min(MOST_PROMPT_SECONDS, PROMPT_SECONDS * max(1.0, self.scheduler.reading / generating))
        return max(LEAST_PROMPT, min(BATCH_TOKENS, int(self._reading_speed * seconds)))

    def _measure(self, step: Step, seconds: float) -> None:
        tokens = sum(len(part.tokens) for part in step.parts)
        if tokens >= LEAST_PROMPT and seconds > 0:
            speed = tokens / seconds
            self._reading_speed = speed if not self._reading_speed else (3 * self._reading_speed + speed) / 4

    def _draw(self, step: Step) -> None:
        row = 0
        for part in step.parts:
            run = self._runs[part.sequence]
            first_row, row = row, row + part.rows
            if part.outputs == "none":
                continue
            try:
                if part.outputs == "all" and not self._read_out(run, part.position, first_row, part.rows):
                    continue
                self._next_token(run, row - 1)
            except GenerationFailed as error:
                self._fail(run, _failed(error))

    def _read_out(self, run: Run, position: int, first_row: int, rows: int) -> bool:
        """Tell the prompt's own probabilities; whether the prompt is complete."""
        prompt, top = run.order.prompt, run.order.logprobs or 0
        if position == 0:
            run.logprobs.append(Logprob(prompt[0], None, []))
        for place in range(position, position + rows):
            if place + 1 < len(prompt):
                run.logprobs.append(self._engine.logprob(first_row + place - position, prompt[place + 1], top))
        return position + rows == len(prompt)

    def _next_token(self, run: Run, row: int) -> None:
        order = run.order
        assert run.sampler is not None  # noqa: S101  true since the order was taken in, for the type checker
        if not run.tokens and order.echo is not None:
            self._items.append((run, Piece(order.echo, run.logprobs)))
            run.logprobs = []
        if run.tokens >= order.limit:
            self._end(run, "length")
            return
        try:
            token = run.sampler.draw(row)
        finally:
            if run.sampler.taken:
                self._share.charge(order.client, run.sampler.taken, time.monotonic())
        if run.first_token_at is None:
            run.first_token_at = time.monotonic()
        if self._engine.is_end(token):
            self._end(run, "stop")
            return
        run.tokens += 1
        self.generated += 1
        if order.logprobs is not None:
            run.logprobs.append(self._engine.logprob(row, token, order.logprobs))
        self._show(run, run.text.feed(self._engine.piece(token, special=order.special)))
        if run.text.stopped:
            self._end(run, "stop")
        elif run.tokens >= order.limit:
            self._end(run, "length")
        else:
            self.scheduler.extend(run.sequence, token)

    def _show(self, run: Run, text: str) -> None:
        if text:
            self._items.append((run, Piece(text, run.logprobs)))
            run.logprobs = []

    def _end(self, run: Run, reason: FinishReason) -> None:
        rest = run.text.finish()
        if rest or run.logprobs:
            self._items.append((run, Piece(rest, run.logprobs)))
            run.logprobs = []
        reused = self.scheduler.reused(run.sequence)
        self._leave(run)
        now = time.monotonic()
        first = run.first_token_at or now
        taken = first - run.began_at, now - first
        self._items.append((run, Ending(reason, len(run.order.prompt), run.tokens, reused, *taken)))

    def _fail(self, run: Run, error: ApiError) -> None:
        self._engine.keep(run.sequence, 0)
        self.scheduler.forget(run.sequence)
        self._leave(run)
        self._items.append((run, error))

    def _leave(self, run: Run) -> None:
        self.scheduler.finish(run.sequence)
        del self._runs[run.sequence]
        if run.sampler is not None:
            run.sampler.free()
            run.sampler = None


def _broken() -> ApiError:
    return ApiError("the worker failed; its log has the reason", code="generation_failed")


def _failed(error: GenerationFailed) -> ApiError:
    if isinstance(error, TooAmbiguous):
        return BadRequest(f"grammar: {error}", code="wrong_grammar")
    return ApiError(f"{error}; the next request may well succeed", code="generation_failed")
