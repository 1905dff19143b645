from __future__ import annotations

import random

import pytest

from llama_orch.contract.process import OUTPUTS_PER_SLOT
from llama_orch.worker.scheduler import LEAST_COPIED, Copy, Part, Scheduler, Step

ROOM = 512


def run(scheduler: Scheduler, room: int = ROOM, prompts: int = ROOM) -> Step:
    step = scheduler.next(room, prompts)
    scheduler.done(step)
    return step


def test_a_prompt_is_read_and_then_one_token_follows_the_other():
    scheduler = Scheduler(1)
    assert scheduler.start([1, 2, 3]) == (0, 0)
    assert run(scheduler) == Step([], [Part(0, [1, 2, 3], 0, "last")])
    scheduler.extend(0, 4)
    assert run(scheduler) == Step([], [Part(0, [4], 3, "last")])
    scheduler.finish(0)
    assert not scheduler.active
    assert scheduler.held_tokens == 4


def test_a_long_prompt_is_read_beside_running_answers_and_stops_none_of_them():
    scheduler = Scheduler(3)
    for prompt in ([1], [2]):
        scheduler.start(prompt)
    run(scheduler)
    scheduler.start(list(range(100, 200)))
    for number in range(5):
        scheduler.extend(0, 10 + number)
        scheduler.extend(1, 20 + number)
        step = run(scheduler, prompts=20)
        assert [part.sequence for part in step.parts] == [0, 1, 2]
        assert [len(part.tokens) for part in step.parts] == [1, 1, 20]
        assert step.parts[2].outputs == ("last" if number == 4 else "none")
    assert (scheduler.generating, scheduler.reading) == (3, 0)


def test_answers_that_rest_stay_where_they_are_and_go_on_later():
    scheduler = Scheduler(3)
    for prompt in ([1], [2]):
        scheduler.start(prompt)
    run(scheduler)
    scheduler.extend(0, 10)
    scheduler.extend(1, 20)
    scheduler.start([3])
    step = scheduler.next(ROOM, ROOM, resting={0})
    assert [(part.sequence, part.tokens) for part in step.parts] == [(1, [20]), (2, [3])]
    scheduler.done(step)
    assert [(part.sequence, part.tokens) for part in run(scheduler).parts] == [(0, [10])]


def test_prompts_are_read_in_the_order_in_which_they_came():
    scheduler = Scheduler(3)
    for number in range(3):
        scheduler.start([number] * 10)
    assert scheduler.reading == 3
    assert [(part.sequence, len(part.tokens)) for part in run(scheduler, prompts=20).parts] == [(0, 10), (1, 10)]
    scheduler.extend(0, 7)
    assert [(part.sequence, len(part.tokens)) for part in run(scheduler, prompts=20).parts] == [(0, 1), (2, 10)]


def test_only_the_first_prompt_of_a_step_is_cut():
    scheduler = Scheduler(3)
    for number in range(3):
        scheduler.start([number] * 10)
    sizes = [[(part.sequence, len(part.tokens)) for part in run(scheduler, prompts=8).parts] for _ in range(4)]
    assert sizes == [[(0, 8)], [(0, 2)], [(1, 8)], [(1, 2)]]
    assert [(part.sequence, len(part.tokens)) for part in run(scheduler, prompts=15).parts] == [(2, 10)]


def test_a_step_has_no_more_tokens_than_there_is_room_for():
    scheduler = Scheduler(4)
    for number in range(4):
        scheduler.start([number] * 300)
    while any(scheduler.next(ROOM, ROOM).parts):
        step = run(scheduler)
        assert sum(len(part.tokens) for part in step.parts) <= ROOM


def test_a_prompt_goes_to_the_slot_that_holds_most_of_it():
    scheduler = Scheduler(3, can_copy=False)
    for prompt in ([1, 1, 1, 1], [1, 2, 2, 2], [3]):
        scheduler.start(prompt)
    run(scheduler)
    for sequence in range(3):
        scheduler.finish(sequence)
    assert scheduler.start([1, 2, 2, 9]) == (1, 3)
    assert scheduler.reused(1) == 3
    assert run(scheduler).parts == [Part(1, [9], 3, "last")]


def test_the_last_token_of_a_prompt_is_always_computed():
    scheduler = Scheduler(1)
    scheduler.start([1, 2, 3])
    run(scheduler)
    scheduler.finish(0)
    assert scheduler.start([1, 2, 3]) == (0, 2)
    assert run(scheduler).parts == [Part(0, [3], 2, "last")]


def test_what_cannot_be_kept_is_computed_again():
    scheduler = Scheduler(1)
    scheduler.start([1, 2, 3])
    run(scheduler)
    scheduler.finish(0)
    scheduler.start([1, 2, 3])
    scheduler.forget(0)
    assert scheduler.reused(0) == 0
    assert run(scheduler).parts == [Part(0, [1, 2, 3], 0, "last")]


def test_a_prompt_that_is_new_takes_the_slot_that_holds_least_and_was_used_longest_ago():
    scheduler = Scheduler(2, can_copy=False)
    for prompt in ([1, 1, 1], [2, 2, 2]):
        scheduler.start(prompt)
    run(scheduler)
    scheduler.finish(1)
    scheduler.finish(0)
    assert scheduler.start([9])[0] == 0


def test_what_another_slot_holds_is_taken_over():
    shared = list(range(LEAST_COPIED + 10))
    scheduler = Scheduler(2)
    scheduler.start([*shared, 1])
    run(scheduler)
    assert scheduler.start([*shared, 2]) == (1, 0)
    scheduler.extend(0, 5)
    step = run(scheduler)
    assert step.copies == [Copy(0, 1, len(shared))]
    assert step.parts == [Part(0, [5], len(shared) + 1, "last"), Part(1, [2], len(shared), "last")]
    assert scheduler.reused(1) == len(shared)


def test_what_one_scope_left_is_nothing_to_another():
    prompt = list(range(LEAST_COPIED + 10))
    scheduler = Scheduler(1)
    scheduler.start(prompt, scope="a")
    run(scheduler)
    scheduler.finish(0)
    assert scheduler.start(prompt, scope="b") == (0, 0)
    assert run(scheduler).parts == [Part(0, prompt, 0, "last")]
    assert scheduler.reused(0) == 0
    scheduler.finish(0)
    assert scheduler.start(prompt, scope="b") == (0, len(prompt) - 1)


@pytest.mark.parametrize("ended", [True, False])
def test_what_another_slot_holds_is_taken_over_within_a_scope_alone(ended: bool):
    shared = list(range(LEAST_COPIED + 10))
    scheduler = Scheduler(3)
    scheduler.start([*shared, 1], scope="a")
    if ended:
        run(scheduler)
        scheduler.finish(0)
    assert scheduler.start([*shared, 2], scope="b")[1] == 0
    assert Part(1, [*shared, 2], 0, "last") in run(scheduler).parts
    scheduler.start([*shared, 3], scope="a")
    assert [copy.source for copy in scheduler.next(ROOM, ROOM).copies] == ([] if ended else [0])


def test_who_waits_for_one_that_is_then_given_to_another_scope_takes_nothing_over():
    shared = list(range(100))
    scheduler = Scheduler(2)
    scheduler.start([*shared, 1], scope="a")
    scheduler.start([*shared, 2], scope="a")
    run(scheduler, prompts=50)
    scheduler.finish(0)
    scheduler.start([*shared, 3], scope="b")
    scheduler.done(Step([], [Part(0, [*shared, 3], 0, "last")]))
    step = run(scheduler)
    assert step.copies == []
    assert step.parts == [Part(1, [*shared, 2], 0, "last")]
    assert scheduler.reused(1) == 0


def test_a_short_common_beginning_is_not_worth_a_copy():
    scheduler = Scheduler(2)
    shared = list(range(LEAST_COPIED - 1))
    scheduler.start([*shared, 1])
    scheduler.start([*shared, 2])
    assert run(scheduler).copies == []


def test_who_shares_a_prompt_waits_for_the_one_who_reads_it():
    shared = list(range(100))
    scheduler = Scheduler(3)
    for end in range(3):
        scheduler.start([*shared, 1000 + end])
    assert [(part.sequence, len(part.tokens)) for part in run(scheduler, prompts=60).parts] == [(0, 60)]
    assert [(part.sequence, len(part.tokens)) for part in run(scheduler, prompts=60).parts] == [(0, 41)]
    step = run(scheduler)
    assert step.copies == [Copy(0, 1, 100), Copy(0, 2, 100)]
    assert [(part.sequence, part.tokens) for part in step.parts] == [(1, [1001]), (2, [1002])]


@pytest.mark.parametrize("how", ["finish", "forget"])
def test_who_waits_for_one_that_ends_early_reads_for_itself(how: str):
    shared = list(range(100))
    scheduler = Scheduler(2)
    scheduler.start([*shared, 1])
    scheduler.start([*shared, 2])
    run(scheduler, prompts=50)
    scheduler.finish(0)
    if how == "forget":
        scheduler.forget(0)
    step = run(scheduler)
    assert step.copies == []
    assert step.parts == [Part(1, [*shared, 2], 0, "last")]


def test_all_rows_of_a_prompt_come_in_small_parts_and_nothing_is_reused():
    scheduler = Scheduler(1)
    prompt = list(range(OUTPUTS_PER_SLOT + 5))
    scheduler.start(prompt)
    run(scheduler)
    scheduler.finish(0)
    assert scheduler.start(prompt, wants_all=True) == (0, 0)
    assert [(part.rows, part.outputs) for part in run(scheduler).parts] == [(OUTPUTS_PER_SLOT, "all")]
    assert [(part.rows, part.outputs) for part in run(scheduler).parts] == [(5, "all")]


def test_more_prompts_than_sequences_are_refused():
    scheduler = Scheduler(1)
    scheduler.start([1])
    with pytest.raises(LookupError):
        scheduler.start([2])


def test_whatever_comes_and_goes_each_answer_is_computed_in_order_and_ends():
    chance = random.Random(7)
    scheduler = Scheduler(4)
    # What each sequence's memory would hold, were it real: (position, token) pairs in the order of computing.
    memory: list[list[int]] = [[] for _ in range(4)]
    running: dict[int, tuple[list[int], int]] = {}
    finished = 0
    for _ in range(3000):
        if len(running) < 4 and chance.random() < 0.4:
            base = chance.choice([[1] * 80, [2] * 40, []])
            prompt = [*base, *(chance.randrange(3) for _ in range(chance.randrange(1, 30)))]
            sequence, kept = scheduler.start(prompt)
            del memory[sequence][kept:]
            running[sequence] = (prompt, chance.randrange(1, 20))
        step = scheduler.next(64, chance.choice([8, 32, 64]))
        for copy in step.copies:
            memory[copy.target] = memory[copy.source][: copy.count]
        for part in step.parts:
            assert part.position == len(memory[part.sequence])
            memory[part.sequence] += part.tokens
        scheduler.done(step)
        assert bool(step.parts) == bool(running)
        for part in step.parts:
            prompt, left = running[part.sequence]
            if part.outputs == "none":
                continue
            assert memory[part.sequence][: len(prompt)] == prompt
            if left == 0 or chance.random() < 0.05:
                scheduler.finish(part.sequence)
                del running[part.sequence]
                finished += 1
            else:
                running[part.sequence] = (prompt, left - 1)
                scheduler.extend(part.sequence, chance.randrange(3))
    assert finished > 100
