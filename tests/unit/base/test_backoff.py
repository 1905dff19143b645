from __future__ import annotations

import pytest

from llama_orch.base import backoff


@pytest.mark.parametrize(("attempt", "base"), [(1, 1), (2, 2), (3, 4), (4, 8), (6, 32), (7, 60), (1000, 60)])
def test_delays_double_up_to_a_minute(attempt: int, base: float):
    delays = [backoff.delay(attempt) for _ in range(200)]
    assert min(delays) >= base * 0.8
    assert max(delays) <= base * 1.2
    assert max(delays) - min(delays) > base * 0.1, "they are spread, so that workers do not restart in step"


def test_a_caller_may_set_the_longest_wait():
    assert max(backoff.delay(9, most_s=5) for _ in range(50)) <= 6
