from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llama_orch.contract.process import FAILURE_FILE, SPEC_FILE, WorkerEnded, WorkerSpec
from llama_orch.hive.workers import ending
from llama_orch.hive.workers.ending import (
    ADVICE,
    ADVICE_BY_US,
    BEFORE_READY,
    WHILE_ALONE,
    WHILE_SERVING,
    Reason,
    describe,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ABORTED = "worker w1 listens on h port 1\n/build/ggml/src/ggml.c:12: GGML_ASSERT(ne > 0) failed\n"


def by(number: int) -> WorkerEnded:
    return WorkerEnded(exit_code=None, signal=number, at=NOW)


def spec(**fields: Any) -> WorkerSpec:
    order = {"worker_id": "w1", "model_path": "/m/a-Q4_0.gguf", "model_name": "a-Q4_0.gguf", "host": "h", "port": 1}
    return WorkerSpec.model_validate(order | {"backend": "cpu"} | fields)


def test_a_crash_names_model_library_and_signal_and_that_it_was_not_ready():
    library = "libggml-cpu-sapphirerapids.so"
    assert describe(by(4), BEFORE_READY, spec(cpu_library=library)).message == (
        "the worker's process was ended by signal 4 (SIGILL) while it loaded its model or tried it out, before it was "
        "ready (model a-Q4_0.gguf, libggml-cpu-sapphirerapids.so)"
    )


@pytest.mark.parametrize(
    ("fields", "engine"),
    [
        ({}, "the engine's CPU library"),
        ({"backend": "cuda", "devices": [1]}, "backend cuda on device 1"),
        ({"backend": "cuda", "devices": [0, 2], "cpu_library": "libggml-cpu-x64.so"}, "backend cuda on devices 0, 2"),
    ],
)
def test_what_the_model_ran_on(fields: dict[str, Any], engine: str):
    message = describe(by(11), WHILE_SERVING, spec(**fields)).message
    assert message.endswith(f"(SIGSEGV) while it was serving (model a-Q4_0.gguf, {engine})")


def test_each_signal_has_advice_of_its_own():
    names = ["SIGABRT", "SIGBUS", "SIGILL", "SIGKILL", "SIGSEGV"]
    assert sorted(ADVICE) == names and len(set(ADVICE.values())) == len(names)
    for name in names:
        problem = describe(by(signal.Signals[name]), WHILE_SERVING)
        assert problem.code == "killed"
        assert problem.what_to_do == f"{ADVICE[name]}; its log is in the hive's log_dir"
    assert "GET /api/v1/devices" in ADVICE["SIGILL"] and "make wheelhouse" in ADVICE["SIGILL"]


@pytest.mark.parametrize("ended", [None, by(signal.SIGTERM), by(63), WorkerEnded(exit_code=1, signal=None, at=NOW)])
def test_other_ends_lead_to_the_log(ended: WorkerEnded | None):
    assert describe(ended, "").what_to_do == "its log is in the hive's log_dir"


@pytest.mark.parametrize("reason", sorted(ADVICE_BY_US))
def test_what_the_hive_killed_was_not_killed_by_the_kernel(reason: Reason):
    problem = describe(by(signal.SIGKILL), " by the hive: it has not answered for 16 s", by_us=reason)
    assert problem.code == reason and "16 s" in problem.message
    assert problem.what_to_do == f"{ADVICE_BY_US[reason]}; its log is in the hive's log_dir"


@pytest.mark.parametrize(("number", "quoted"), [(signal.SIGABRT, True), (signal.SIGSEGV, False)])
def test_only_who_gave_up_is_quoted(tmp_path: Path, number: signal.Signals, quoted: bool):
    folder, log = tmp_path / "w1", tmp_path / "worker-w1.log"
    folder.mkdir()
    (folder / SPEC_FILE).write_text(spec().model_dump_json())
    log.write_text(ABORTED)
    problem = ending.why(folder, log, by(number), BEFORE_READY, by_us=None)
    assert problem.message.endswith(
        "(model a-Q4_0.gguf, the engine's CPU library)" + ": ggml.c:12: GGML_ASSERT(ne > 0) failed" * quoted
    )
    assert str(tmp_path) not in problem.message


@pytest.mark.parametrize("written", [None, "", "{}", '{"a_field_of_tomorrow": 1}'])
def test_an_order_that_cannot_be_read_names_nothing(tmp_path: Path, written: str | None):
    if written is not None:
        (tmp_path / SPEC_FILE).write_text(written)
    problem = ending.why(tmp_path, tmp_path / "no.log", by(signal.SIGABRT), WHILE_ALONE, by_us=None)
    assert problem.message == "the worker's process was ended by signal 6 (SIGABRT) while the agent was not running"


def test_what_a_worker_says_of_its_failure_is_taken_in_a_length_that_can_be_shown(tmp_path: Path):
    known = {"code": "model_unreadable", "message": "m" * 100_000, "what_to_do": "w" * 100_000}
    (tmp_path / FAILURE_FILE).parent.mkdir(exist_ok=True)
    (tmp_path / FAILURE_FILE).write_text(json.dumps(known))
    found = ending.known_failure(tmp_path)
    assert found is not None
    assert (len(found.message), len(found.what_to_do)) == (ending.MOST_CHARACTERS,) * 2
    (tmp_path / FAILURE_FILE).write_text(json.dumps(known | {"code": "<script>"}))
    assert ending.known_failure(tmp_path) is None


def test_five_crashes_in_a_row_are_enough_and_service_forgives():
    streak = 0
    for served in (0, 10, 299.9, 5):
        streak = ending.streak_after(streak, served)
        assert not ending.gives_up(streak)
    assert ending.gives_up(ending.streak_after(streak, 1))
    assert ending.streak_after(streak, 300) == 1
