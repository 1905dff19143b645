"""Whose answers go on in a step, with an engine that computes nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from llama_orch.worker.batching.batcher import Batcher, Item, Run
from llama_orch.worker.generation import Constraint, Ending, ModelInfo, Order, Sampling

HELD = Sampling(temperature=0, constraint=Constraint('root ::= "a"*'))
INFO = ModelInfo(context=512, trained_context=512, vocabulary=9, chat_template=None, bos_text="", eos_text="")


class Engine:
    """Each draw under a grammar takes a fifth of a second of CPU, as it says."""

    def __init__(self) -> None:
        self.draws = {True: 0, False: 0}

    def sampler(self, sampling: Sampling) -> Any:
        held = sampling.constraint is not None

        def draw(_: int) -> int:
            self.draws[held] += 1
            return 5

        return SimpleNamespace(draw=draw, free=lambda: None, taken=0.2 if held else 0.0)

    def keep(self, *_: object) -> bool:
        return True

    def decode(self, _: object) -> None: ...

    def is_end(self, _: int) -> bool:
        return False

    def piece(self, _: int, *, special: bool = False) -> bytes:
        return b"a"


def draws_beside(clients: list[tuple[str, Sampling]], *, until: str) -> dict[bool, int]:
    """How often the engine drew with and without a grammar until this client had its 200 tokens."""
    made, ended = Engine(), list[Run]()
    batcher: Batcher

    def deliver(items: list[tuple[Run, Item]]) -> None:
        ended.extend(run for run, item in items if isinstance(item, Ending))
        if any(run.order.client == until for run in ended):
            batcher.close()

    engine: Any = made
    batcher = Batcher(engine, INFO, len(clients), deliver)
    for client, sampling in clients:
        batcher.submit(Run(Order([1], 200, sampling, client=client)))
    batcher.loop()
    return made.draws


def test_one_clients_grammars_rest_while_another_is_answered():
    draws = draws_beside([("attacker", HELD), ("attacker", HELD), ("other", Sampling())], until="other")
    # What it may have at once, and a draw of each answer above that.
    assert draws[False] == 200 and draws[True] < 20


def test_grammars_rest_for_nobody_of_the_same_client():
    draws = draws_beside([("one", HELD), ("one", Sampling())], until="one")
    assert draws[True] > 190


def test_two_clients_whose_grammars_both_rest_go_on():
    draws = draws_beside([("one", HELD), ("two", HELD)], until="two")
    assert draws[True] >= 200


def test_only_an_engine_that_lives_answers_whether_it_does():
    engine: Any = Engine()
    batcher = Batcher(engine, replace(INFO, step_seconds=3.0), 1, lambda _: None)
    assert batcher.silent_seconds == 0
    batcher.ask()
    asked = batcher.silent_seconds
    batcher.ask()
    assert batcher.silent_seconds > asked > 0, "the first question counts"
    batcher.submit(batcher.close)
    batcher.loop()
    assert batcher.silent_seconds == 0
    assert batcher.longest_step_seconds == 3.0, "the warm-up's"


def test_a_step_that_goes_on_is_silence_and_its_length_is_kept():
    seen = list[float]()

    class Slow(Engine):
        def decode(self, _: object) -> None:
            seen.append(batcher.silent_seconds)
            while batcher.silent_seconds < 0.01:
                pass

    engine: Any = Slow()
    batcher = Batcher(engine, INFO, 1, lambda _: batcher.close())
    batcher.submit(Run(Order([1], 1, Sampling(), client="one")))
    batcher.loop()
    assert 0 < seen[0] < 0.01 <= batcher.longest_step_seconds
