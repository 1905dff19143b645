from __future__ import annotations

import itertools

import pytest

from llama_orch.contract.hive import WorkerStatus
from llama_orch.hive.workers.state import WorkerState, WrongTransition

MOVES = {
    "download": lambda state: state.download(),
    "load": lambda state: state.load(),
    "serve": lambda state: state.serve(0),
    "serve busy": lambda state: state.serve(2),
    "drain": lambda state: state.drain(),
    "stop": lambda state: state.stop(),
    "fail": lambda state: state.fail(),
}


def test_a_whole_life():
    state = WorkerState()
    seen = [state.status]
    for move in ("download", "load", "serve", "serve busy", "serve", "load", "serve busy", "drain", "stop"):
        MOVES[move](state)
        seen.append(state.status)
    assert seen == [
        *["loading", "downloading", "loading", "idle", "busy", "idle", "loading", "busy", "draining", "stopped"]
    ]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (["download"], "serve"),
        ([], "stop"),
        (["serve"], "stop"),
        (["fail"], "serve"),
        (["fail"], "download"),
        (["drain"], "load"),
        (["drain"], "serve"),
        (["drain", "stop"], "load"),
        (["drain", "stop"], "fail"),
    ],
)
def test_what_cannot_follow(path: list[str], wrong: str):
    state = WorkerState()
    for move in path:
        MOVES[move](state)
    before = state.status
    with pytest.raises(WrongTransition):
        MOVES[wrong](state)
    assert state.status is before


@pytest.mark.parametrize("before", [["download"], [], ["serve"], ["serve busy"], ["fail"]])
def test_every_worker_can_be_stopped(before: list[str]):
    state = WorkerState()
    for move in [*before, "drain", "stop"]:
        MOVES[move](state)
    assert state.status is WorkerStatus.STOPPED


def test_every_status_is_reached():
    reached = set()
    for moves in itertools.permutations(MOVES, 4):
        state = WorkerState()
        for move in moves:
            try:
                MOVES[move](state)
            except WrongTransition:
                break
            reached.add(state.status)
    assert reached | {WorkerStatus.LOADING} == set(WorkerStatus)
