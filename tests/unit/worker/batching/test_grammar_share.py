"""Whose grammars wait for others' answers."""

from __future__ import annotations

from llama_orch.worker.batching.grammar_share import BURST_SECONDS, SHARE, GrammarShare


def test_a_client_rests_until_its_share_has_paid_for_what_it_took():
    share = GrammarShare()
    share.charge("a", BURST_SECONDS, now=100.0)
    assert not share.rests("a", 100.0)
    share.charge("a", 0.1, now=100.0)
    assert share.rests("a", 100.0) and not share.rests("b", 100.0)
    assert share.rests("a", 100.0 + 0.9 * 0.1 / SHARE)
    assert not share.rests("a", 100.0 + 1.1 * 0.1 / SHARE)


def test_a_client_that_keeps_to_its_share_never_rests():
    share, now = GrammarShare(), 0.0
    for _ in range(1000):
        share.charge("a", 0.02, now)
        now += 0.02 / SHARE
        assert not share.rests("a", now)


def test_what_was_taken_long_ago_is_forgotten():
    share = GrammarShare()
    for number in range(1000):
        share.charge(f"client {number}", 0.01, now=float(number))
    assert len(share._paid_at) < 5
