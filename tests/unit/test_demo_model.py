from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from llama_orch.demo_model import (
    CHAT_TEMPLATE,
    DEMO_SENTENCE,
    END,
    expected_completion,
    sentence_tokens,
    write_demo_model,
)
from tests.support.gguf.models import not_a_gguf, slow_model, split_model, truncated_model


class Follower:
    """The model's own arithmetic, done by numpy on what the file holds."""

    def __init__(self, path: Path) -> None:
        self.reader = gguf.GGUFReader(path)
        self.texts: list[str] = self.reader.fields["tokenizer.ggml.tokens"].contents()
        weights = {tensor.name: tensor.data for tensor in self.reader.tensors}
        logits = weights["token_embd.weight"].astype(np.float32) @ weights["output.weight"].T.astype(np.float32)
        self.following = logits.argmax(axis=1)
        self.margins = np.sort(logits, axis=1)[:, -1] - np.sort(logits, axis=1)[:, -2]

    def text_after(self, token: str, count: int) -> str:
        current, text = self.texts.index(token), ""
        for _ in range(count):
            current = int(self.following[current])
            if current == END:
                break
            text += self.texts[current].replace("\u2581", " ")
        return text


@pytest.fixture
def follower(tmp_path: Path) -> Follower:
    return Follower(write_demo_model(tmp_path / "demo.gguf"))


def test_chat_gives_the_sentence_then_ends(follower: Follower) -> None:
    assert follower.text_after("<|assistant|>", 200) == DEMO_SENTENCE
    assert CHAT_TEMPLATE.endswith("<|assistant|>{% endif %}")


@pytest.mark.parametrize("last", ["A", "Z", "m", "z", "0", "9", "!", "."])
def test_expected_completion_is_what_the_weights_say(follower: Follower, last: str) -> None:
    assert follower.text_after(last, 30) == expected_completion(last, 30)


def test_a_to_m() -> None:
    assert expected_completion("A", 12) == "BCDEFGHIJKLM"
    assert expected_completion("Y", 3) == "ZAB"


def test_no_near_ties(follower: Follower) -> None:
    assert follower.margins.min() > 0


def test_same_bytes_and_only_the_file(tmp_path: Path) -> None:
    first = write_demo_model(tmp_path / "a" / "one.gguf")
    second = write_demo_model(tmp_path / "a" / "two.gguf")
    assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"one.gguf", "two.gguf"}
    assert first.stat().st_size < 4_000_000


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="repeats a word"):
        write_demo_model(tmp_path / "bad.gguf", sentence="one two two")
    with pytest.raises(ValueError, match="too short"):
        write_demo_model(tmp_path / "bad.gguf", sentence="What a day")
    assert list(tmp_path.iterdir()) == []


def test_options(tmp_path: Path) -> None:
    own = Follower(write_demo_model(tmp_path / "own.gguf", name="mine", context_length=256, sentence="Hello from here"))
    assert own.reader.fields["general.name"].contents() == "mine"
    assert own.reader.fields["llama.context_length"].contents() == 256
    assert own.text_after("<|assistant|>", 9) == "Hello from here"
    assert sentence_tokens("Hello from here") == ["Hello", " from", " here"]


def test_split_model_is_two_parts_that_say_so(tmp_path: Path) -> None:
    parts = split_model(tmp_path)
    assert [part.name for part in parts] == ["demo-00001-of-00002.gguf", "demo-00002-of-00002.gguf"]
    whole = len(gguf.GGUFReader(write_demo_model(tmp_path / "whole.gguf")).tensors)
    readers = [gguf.GGUFReader(part) for part in parts]
    assert sum(len(reader.tensors) for reader in readers) == whole
    for number, reader in enumerate(readers):
        assert reader.fields["split.no"].contents() == number
        assert reader.fields["split.count"].contents() == 2
        assert reader.fields["split.tensors.count"].contents() == whole


def test_slow_model_answers_the_same(tmp_path: Path) -> None:
    assert Follower(slow_model(tmp_path / "slow.gguf", blocks=1)).text_after("A", 12) == "BCDEFGHIJKLM"


def test_broken_models_are_broken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="magic"):
        gguf.GGUFReader(not_a_gguf(tmp_path / "page.gguf"))
    whole = write_demo_model(tmp_path / "whole.gguf").stat().st_size
    assert truncated_model(tmp_path / "cut.gguf").stat().st_size == whole // 2
