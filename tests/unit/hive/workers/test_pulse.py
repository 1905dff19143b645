from __future__ import annotations

import os

from llama_orch.contract.inference import WorkerHealth
from llama_orch.hive.workers import process_table
from llama_orch.hive.workers.pulse import AT_WORK_S, DOUBTED_S, FAILED_ASKS, LEAST_S, Progress, Pulse, is_doubted


def says(silent: float = 0.0, longest: float = 0.0) -> WorkerHealth:
    return WorkerHealth(
        status="idle",
        worker_id="w1",
        percentage=100,
        slots=1,
        slots_busy=0,
        engine_silent_seconds=silent,
        longest_step_seconds=longest,
    )


def had(cpu: int = 0, faults: int = 0) -> Progress:
    return Progress(cpu=cpu, major_faults=faults)


def test_a_worker_that_answers_does_not_hang():
    pulse = Pulse(0)
    for now in range(1, 1000):
        pulse.asked(says(), had(), now)
        assert pulse.hangs(now) is None


def test_an_engine_that_ends_no_step_hangs_though_the_worker_answers():
    pulse = Pulse(0)
    for now in range(1, 20):
        pulse.asked(says(silent=now), had(cpu=now), now)
        assert (pulse.hangs(now) is not None) == (now > LEAST_S)
    assert pulse.hangs(19) == "its engine has ended no step for 19 s, where the longest before took 0.0 s"


def test_long_steps_give_time_for_longer_ones():
    pulse = Pulse(0)
    for now in range(1, 60):
        pulse.asked(says(silent=now, longest=4.0), had(), now)
        assert (pulse.hangs(now) is not None) == (now > 40)


def test_a_step_that_reads_its_model_from_a_disk_has_time_but_not_for_ever():
    pulse = Pulse(0)
    for now in range(1, 130):
        pulse.asked(says(silent=now), had(faults=now), now)
        assert (pulse.hangs(now) is not None) == (now > AT_WORK_S)


def test_a_stopped_process_hangs():
    pulse = Pulse(0)
    pulse.asked(says(), had(cpu=7), 1)
    for now in range(3, 30, 3):
        pulse.asked(None, had(cpu=7), now)
        assert (pulse.hangs(now) is not None) == (now > 1 + LEAST_S)
    assert pulse.hangs(30) == "it has not answered for 29 s"


def test_a_worker_that_computes_and_cannot_answer_has_time_but_not_for_ever():
    pulse = Pulse(0)
    for now in range(3, 150, 3):
        pulse.asked(None, had(cpu=now), now)
        assert (pulse.hangs(now) is not None) == (now > AT_WORK_S)


def test_a_machine_that_stood_still_is_asked_several_times_before_anything_is_ended():
    pulse = Pulse(0)
    pulse.asked(says(), had(), 1)
    for failed in range(1, FAILED_ASKS):
        pulse.asked(None, had(), 3600 + failed)
        assert pulse.hangs(3600 + failed) is None
    pulse.asked(None, had(), 3600 + FAILED_ASKS)
    assert pulse.hangs(3600 + FAILED_ASKS) is not None


def test_an_answer_forgives_all_that_failed():
    pulse = Pulse(0)
    for now in range(10, 15):
        pulse.asked(None, had(), now)
    pulse.asked(says(), had(), 15)
    for now in range(16, 25):
        pulse.asked(None, had(), now)
        assert pulse.hangs(now) is None


def test_a_process_that_is_gone_tells_nothing():
    pulse = Pulse(0)
    pulse.asked(None, None, 1)
    pulse.asked(None, had(), 2)
    assert pulse.hangs(3) is None


def test_a_process_is_looked_at_only_where_it_may_hang():
    assert is_doubted(None) and is_doubted(says(silent=DOUBTED_S + 0.1))
    assert not is_doubted(says(silent=DOUBTED_S))
    pulse = Pulse(0)
    for now in range(1, 60):
        health = says(silent=now)
        pulse.asked(health, had(faults=now) if is_doubted(health) else None, now)
        assert pulse.hangs(now) is None, "it reads from its disk"


def test_what_a_process_has_had_of_the_machine():
    before = process_table.progress(os.getpid())
    sum(range(100_000))
    after = process_table.progress(os.getpid())
    assert before is not None and after is not None and after.cpu > before.cpu
    assert process_table.progress(2**22 + 1) is None
