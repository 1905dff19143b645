from __future__ import annotations

from llama_orch.hive import gpus
from llama_orch.queen.settings import QueenSettings


def test_the_queen_hears_of_a_driver_that_hangs_before_it_gives_the_hive_up():
    patience = QueenSettings.model_fields["probe_timeout_s"].default
    # A second for all else, and for the way.
    assert patience > gpus.PATIENCE_S + 1
