"""The engine's thread on real models in real llama.cpp, without HTTP."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from llama_orch.contract.errors import ApiError
from llama_orch.contract.process import WorkerSpec
from llama_orch.demo_model import expected_completion, write_demo_model
from llama_orch.worker.batching.batcher import Batcher, Item, Run
from llama_orch.worker.generation import Constraint, Ending, ModelInfo, Order, Piece, Sampling, WrongGrammar
from llama_orch.worker.llama.engine import LlamaEngine

GREEDY = Sampling(temperature=0)
SLOTS = 4


@dataclass
class Answer:
    """What came of an order."""

    pieces: list[Piece]
    last: Ending | ApiError

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class Worker:
    """An engine and its thread."""

    def __init__(self, path: Path) -> None:
        spec = WorkerSpec(
            worker_id="tested", model_path=str(path), model_name="m", host="127.0.0.1", port=1, backend="cpu",
            slots=SLOTS, ctx_per_slot=512,
        )  # fmt: skip
        self.engine = LlamaEngine(spec, threads=1)
        self.loaded: queue.Queue[ModelInfo] = queue.Queue()
        self.items: queue.Queue[tuple[Run, Item]] = queue.Queue()
        self.batcher: Batcher | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self.info = self.loaded.get(timeout=60)

    def _work(self) -> None:
        info = self.engine.load(lambda _: True)

        def deliver(items: list[tuple[Run, Item]]) -> None:
            for item in items:
                self.items.put(item)

        self.batcher = Batcher(self.engine, info, SLOTS, deliver)
        self.loaded.put(info)
        self.batcher.loop()

    def order(self, prompt: str, limit: int = 20, sampling: Sampling = GREEDY, **more: object) -> Order:
        return replace(Order(self.engine.tokenize(prompt), limit, sampling), **more)  # pyright: ignore[reportArgumentType]

    def submit(self, *orders: Order) -> list[Run]:
        assert self.batcher is not None
        runs = [Run(order) for order in orders]
        for run in runs:
            self.batcher.submit(run)
        return runs

    def collect(self, runs: list[Run]) -> list[Answer]:
        got: dict[Run, list[Item]] = {run: [] for run in runs}
        left = len(runs)
        while left:
            run, item = self.items.get(timeout=30)
            got[run].append(item)
            left -= isinstance(item, Ending | ApiError)
        return [
            Answer([item for item in items if isinstance(item, Piece)], items[-1])  # pyright: ignore[reportArgumentType]
            for items in got.values()
        ]

    def answers(self, *orders: Order) -> list[Answer]:
        return self.collect(self.submit(*orders))

    def close(self) -> None:
        assert self.batcher is not None
        self.batcher.close()
        self._thread.join(30)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    opened = Worker(write_demo_model(tmp_path_factory.mktemp("demo") / "demo.gguf"))
    yield opened
    opened.close()


def test_as_many_answers_as_there_are_slots_come_together_and_are_right(worker: Worker):
    prompts = ["A", "x", "hello B", "0"]
    answers = worker.answers(*(worker.order(prompt, 30) for prompt in prompts))
    assert [answer.text for answer in answers] == [expected_completion(prompt[-1], 30) for prompt in prompts]
    assert [answer.last.reason for answer in answers if isinstance(answer.last, Ending)] == ["length"] * 4


def test_what_a_slot_holds_is_not_computed_again(worker: Worker):
    prompt = "a prompt that nobody has sent before: A"
    (first,) = worker.answers(worker.order(prompt))
    (second,) = worker.answers(worker.order(prompt))
    assert isinstance(first.last, Ending) and isinstance(second.last, Ending)
    assert first.text == second.text
    assert second.last.reused == second.last.prompt_tokens - 1


def test_what_another_slot_computes_is_taken_over(worker: Worker):
    shared = "this is read once, though four have asked for it at the same time; "
    answers = worker.answers(*(worker.order(shared + end) for end in "ABCD"))
    assert [answer.text for answer in answers] == [expected_completion(end, 20) for end in "ABCD"]
    reused = [answer.last.reused for answer in answers if isinstance(answer.last, Ending)]
    assert [count > len(shared) // 2 for count in reused] == [False, True, True, True]


def test_a_run_that_nobody_wants_ends_at_the_next_step_and_frees_its_slot(worker: Worker):
    runs = worker.submit(*(worker.order("A", 490) for _ in range(SLOTS)))
    runs[0].unwanted = True
    answers = worker.collect(runs)
    assert len(answers[0].text) < 490
    assert [len(answer.text) for answer in answers[1:]] == [490] * 3
    assert worker.answers(worker.order("A", 3))[0].text == "BCD"


def test_the_context_ends_the_answer(worker: Worker):
    tokens = worker.engine.tokenize("A" * 500)
    (answer,) = worker.answers(Order(tokens, worker.info.context - len(tokens), GREEDY))
    assert isinstance(answer.last, Ending)
    assert (answer.last.reason, len(tokens) + answer.last.tokens) == ("length", worker.info.context)


def test_what_llama_refuses_fails_what_was_in_it_and_nothing_after(worker: Worker):
    beyond = worker.info.vocabulary + 5
    (answer,) = worker.answers(Order([1, beyond], 5, GREEDY))
    assert isinstance(answer.last, ApiError)
    assert answer.last.error_code == "generation_failed"
    assert worker.answers(worker.order("A", 3))[0].text == "BCD"


def test_the_same_seed_draws_the_same_alone_and_in_company(worker: Worker):
    # Without the model's own preference: every token is as likely as the others.
    flat = Sampling(temperature=2.0, seed=11, logit_bias=tuple((token, -100.0) for token in range(3, 60)), top_k=0)
    alone = worker.answers(worker.order("q", 40, flat))[0].text
    company = worker.answers(
        worker.order("q", 40, flat), *(worker.order("q", 40, replace(flat, seed=seed)) for seed in (1, 2, 3))
    )
    assert company[0].text == alone


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [('root ::= "Z"{5}', "ZZZZZ"), ('root ::= ("no" | "never") "!"', "n"), ("root ::= [0-9]{3}", "")],
)
def test_a_grammar_is_kept_to(worker: Worker, grammar: str, expected: str):
    for temperature in (0.0, 1.5):
        sampling = Sampling(temperature=temperature, seed=4, constraint=Constraint(grammar))
        (answer,) = worker.answers(worker.order("A", 30, sampling))
        assert isinstance(answer.last, Ending) and answer.last.reason == "stop"
        assert answer.text.startswith(expected) and len(answer.text) in {3, 4, 5, 6}


def test_a_grammar_waits_for_its_word(worker: Worker):
    sampling = replace(GREEDY, constraint=Constraint('root ::= "!!"', after=("nowhere", "DE")))
    assert worker.answers(worker.order("A", 30, sampling))[0].text == "BCDE!!"


@pytest.mark.parametrize(
    "grammar", ["root ::= nothing", 'root ::= root "a"', "no grammar at all", 'start ::= "a"', "{"]
)
def test_a_wrong_grammar_is_refused_before_it_does_harm(worker: Worker, grammar: str):
    with pytest.raises(WrongGrammar):
        worker.engine.check(Constraint(grammar))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_that_leads_nowhere_fails_its_request_alone(worker: Worker, temperature: float):
    # After its one letter the grammar allows nothing but the end, which the request forbids.
    sampling = Sampling(temperature=temperature, ignore_eos=True, constraint=Constraint('root ::= "a"'))
    answers = worker.answers(worker.order("A", 30, sampling), worker.order("A", 5))
    assert answers[1].text == "BCDEF"
    assert isinstance(answers[0].last, ApiError) and "grammar" in answers[0].last.message
    assert answers[0].text == "a"


def test_what_comes_with_the_word_belongs_to_the_grammar(worker: Worker):
    # The word ends in the middle of what has come: the rest of it must be taken by the grammar.
    sampler = worker.engine.sampler(replace(GREEDY, constraint=Constraint('root ::= "\\n{" "!"', after=("<call>",))))
    for piece in ("<ca", "ll>\n{"):
        sampler.follow(piece)
    assert sampler.held_to


def test_a_grammar_that_takes_ever_longer_ends_its_request_alone(worker: Worker):
    ambiguous = Constraint('root ::= s\ns ::= "a" s "b" | "a" s "c" | "d"')
    letter = worker.engine.tokenize("a", begin=False)[-1]
    sampling = replace(GREEDY, constraint=ambiguous, logit_bias=((letter, 100.0),))
    answers = worker.answers(worker.order("A", 200, sampling), worker.order("A", 5))
    assert answers[1].text == "BCDEF"
    assert isinstance(answers[0].last, ApiError) and "ambiguous" in answers[0].last.message


def test_stops_logprobs_and_echo(worker: Worker):
    (answer,) = worker.answers(worker.order("A", 30, stops=["FG"], logprobs=2, echo="A"))
    assert answer.text == "ABCDE"
    told = [one for piece in answer.pieces for one in piece.logprobs]
    assert told[0].value is None
    assert all(one.value is not None and one.value <= 0 and len(one.top) == 2 for one in told[1:])
    assert all(one.top[0] == (one.token, one.value) for one in told[2:]), "greedy takes the likeliest"


def test_many_come_and_go_and_no_slot_is_lost(worker: Worker):
    begun = time.monotonic()
    for number in range(200):
        runs = worker.submit(*(worker.order("AbC"[: 1 + n % 3], 5 + n) for n in range(SLOTS)))
        if number % 3 == 0:
            runs[number % SLOTS].unwanted = True
        worker.collect(runs)
    assert worker.batcher is not None and not worker.batcher.scheduler.active
    assert worker.answers(worker.order("A", 3))[0].text == "BCD"
    assert time.monotonic() - begun < 60
