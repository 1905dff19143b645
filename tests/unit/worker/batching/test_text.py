from __future__ import annotations

import random

import pytest

from llama_orch.worker.batching.text import TextAssembler


def shown(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    assembler = TextAssembler(stops)
    texts = []
    for piece in pieces:
        texts.append(assembler.feed(piece))
        if assembler.stopped:
            break
    texts.append(assembler.finish())
    return texts, assembler.stopped


@pytest.mark.parametrize("text", ["é", "日本語", "🦙 llama", "a\u0301", "\x00\n\t"])
def test_characters_appear_whole_however_the_bytes_come(text: str):
    pieces = [bytes([byte]) for byte in text.encode()]
    texts, _ = shown(pieces, [])
    assert "".join(texts) == text
    assert "\ufffd" not in "".join(texts)


def test_half_a_character_waits_for_its_other_half():
    first, second = "é".encode()[:1], "é".encode()[1:]
    assembler = TextAssembler([])
    assert assembler.feed(b"a" + first) == "a"
    assert assembler.feed(second) == "é"


def test_half_a_character_at_the_end_is_left_out():
    texts, _ = shown([b"ok" + "🦙".encode()[:3]], [])
    assert "".join(texts) == "ok"


def test_bytes_that_are_no_character_become_the_replacement_sign():
    texts, _ = shown([b"a\xffb"], [])
    assert "".join(texts) == "a\ufffdb"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("ABCDEF", ["D"], "ABC"),
        ("ABCDEF", ["CDE"], "AB"),
        ("ABCDEF", ["X"], "ABCDEF"),
        ("ABCDEF", ["EF", "BC"], "A"),
        ("ABCDEF", ["ABCDEF"], ""),
        ("aaab", ["aab"], "a"),
        ("abababac", ["ababac"], "ab"),
        ("one\n\ntwo", ["\n\n"], "one"),
        ("das süße", ["üß"], "das s"),
        ("CDX", ["CDE"], "CDX"),
        ("AB", ["BC"], "AB"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_nothing_of_a_stop_string_is_shown(text: str, stops: list[str], expected: str, size: int):
    raw = text.encode()
    texts, stopped = shown([raw[start : start + size] for start in range(0, len(raw), size)], stops)
    assert "".join(texts) == expected
    assert stopped == (expected != text)


def test_text_is_held_back_no_longer_than_needed():
    assembler = TextAssembler(["STOP"])
    assert [assembler.feed(piece) for piece in (b"a", b"S", b"T", b"A", b"b")] == ["a", "", "", "STA", "b"]


def test_nothing_comes_after_a_stop():
    assembler = TextAssembler(["x"])
    assert assembler.feed(b"1x2") == "1"
    assert (assembler.feed(b"3"), assembler.finish()) == ("", "")


def test_random_texts_are_cut_where_the_whole_text_would_be():
    chance = random.Random(1)
    for _ in range(2000):
        text = "".join(chance.choices("abé", k=chance.randrange(30)))
        stops = ["".join(chance.choices("abé", k=chance.randrange(1, 5))) for _ in range(chance.randrange(3))]
        raw, pieces = text.encode(), []
        while raw:
            size = chance.randrange(1, 4)
            pieces.append(raw[:size])
            raw = raw[size:]
        texts, stopped = shown(pieces, stops)
        got = "".join(texts)
        assert stopped == any(stop in text for stop in stops)
        assert not any(stop in got for stop in stops)
        if stopped:
            assert text.startswith(got) and any(text[len(got) :].startswith(stop) for stop in stops)
        else:
            assert got == text
