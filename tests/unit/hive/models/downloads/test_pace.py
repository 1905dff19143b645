from __future__ import annotations

import pytest

from llama_orch.hive.models.downloads.pace import Pace


def test_the_rate_is_that_of_the_last_seconds():
    pace = Pace()
    assert pace.bytes_per_second(0.0) == 0.0
    for second in range(11):
        pace.at(second * 100, float(second))
    assert pace.bytes_per_second(10.0) == pytest.approx(100.0)
    assert pace.done == 1000
    assert pace.bytes_per_second(12.0) < 100.0, "a stall shows"
    assert pace.bytes_per_second(30.0) == 0.0


def test_a_start_from_nothing_gives_no_negative_rate():
    pace = Pace()
    pace.at(1000, 1.0)
    pace.at(0, 2.0)
    pace.at(50, 3.0)
    assert pace.bytes_per_second(3.0) == pytest.approx(50.0)
