from __future__ import annotations

from llama_orch.hive.workers import crashes


def test_five_crashes_in_a_row_are_enough_and_service_forgives():
    streak = 0
    for served in (0, 10, 299.9, 5):
        streak = crashes.streak_after(streak, served)
        assert not crashes.gives_up(streak)
    assert crashes.gives_up(crashes.streak_after(streak, 1))
    assert crashes.streak_after(streak, 300) == 1
