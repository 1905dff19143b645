from __future__ import annotations

import pytest

from llama_orch.queen.jobs.progress import Progress


@pytest.mark.parametrize("expected", [1, 10, 60])
@pytest.mark.parametrize("tasks", [0, 1, 10, 200])
def test_it_never_goes_back_and_100_is_success_alone(expected: int, tasks: int):
    progress = Progress()
    seen = [progress.percentage]
    progress.expect(expected)
    for _ in range(tasks):
        progress.task_began()
        seen.append(progress.percentage)
    progress.playbook_ended()
    seen.append(progress.percentage)
    assert seen == sorted(seen) and seen[-1] < 100
    progress.succeeded()
    assert progress.percentage == 100


def test_it_moves_with_the_tasks():
    progress = Progress()
    progress.expect(9)
    for _ in range(5):
        progress.task_began()
    assert progress.percentage == 45.0


def test_a_resumed_job_goes_on_where_it_was():
    progress = Progress(60.0)
    progress.expect(10)
    progress.task_began()
    assert progress.percentage == 60.0
