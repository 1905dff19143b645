"""llama.cpp's own grammar sampler over a tiny vocabulary: what the grammars that we write really allow."""

from __future__ import annotations

import ctypes
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp as binding
import numpy as np

from llama_orch.demo_model import write_demo_model
from llama_orch.worker.llama import backends
from llama_orch.worker.llama.binding import GrammarSteps

llama_cpp: Any = binding
_TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class _Vocabulary:
    """The demonstration model's: each byte is a token, and so is each printable ASCII character."""

    def __init__(self) -> None:
        backends.load()
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        with tempfile.TemporaryDirectory() as folder:
            path = write_demo_model(Path(folder) / "vocabulary.gguf")
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        self.handle = llama_cpp.llama_model_get_vocab(self._model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.handle)
        self.end = llama_cpp.llama_vocab_eos(self.handle)
        self.ends = {token for token in range(self.size) if llama_cpp.llama_vocab_is_eog(self.handle, token)}
        self.pieces = [self._piece(token) for token in range(self.size)]

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        length = llama_cpp.llama_token_to_piece(self.handle, token, buffer, 64, 0, True)
        return buffer.raw[:length]

    def tokens(self, text: str) -> list[int]:
        raw = text.encode()
        tokens = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self.handle, raw, len(raw), tokens, len(tokens), False, False)
        return list(tokens[:count])


@cache
def _vocabulary() -> _Vocabulary:
    return _Vocabulary()


class Grammar:
    """A grammar that llama.cpp has taken. Use as a context manager."""

    def __init__(self, text: str) -> None:
        self._vocabulary = _vocabulary()
        # Steps are counted for each thread, and a sampler that another test had in this one may have used its up.
        GrammarSteps().allow(2**62)
        self._sampler = llama_cpp.llama_sampler_init_grammar(self._vocabulary.handle, text.encode(), b"root")
        assert self._sampler, f"llama.cpp does not take {text}"

    def __enter__(self) -> Grammar:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_sampler_free(self._sampler)

    def _allowed(self, tokens: list[int]) -> list[int]:
        data = (llama_cpp.llama_token_data * len(tokens))()
        view = np.frombuffer(data, dtype=_TOKEN)
        view["id"] = tokens
        array = llama_cpp.llama_token_data_array(data, len(tokens), -1, False)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))
        return [int(token) for token in view["id"][np.isfinite(view["logit"])]]

    def accepts(self, text: str) -> bool:
        """Whether `text`, as a whole, is allowed."""
        for token in self._vocabulary.tokens(text):
            if not self._allowed([token]):
                return False
            llama_cpp.llama_sampler_accept(self._sampler, token)
        return bool(self._allowed([self._vocabulary.end]))

    def write(self, seed: int, limit: int = 400) -> str | None:
        """A text that the grammar allows, drawn at random; None where it has not ended after `limit` tokens."""
        dice = random.Random(seed)
        text = b""
        for _ in range(limit):
            allowed = self._allowed(list(range(self._vocabulary.size)))
            assert allowed, f"nothing goes on from {text!r}"
            going_on = [token for token in allowed if token not in self._vocabulary.ends]
            if len(going_on) < len(allowed) and (not going_on or dice.random() < 0.5):
                return text.decode(errors="replace")
            # What closes something comes more often, or few texts would end.
            closing = [token for token in going_on if self._vocabulary.pieces[token] in (b'"', b"}", b"]")]
            plain = [token for token in going_on if self._vocabulary.pieces[token].isascii()]
            token = dice.choice(closing if closing and dice.random() < 0.4 else plain or going_on)
            llama_cpp.llama_sampler_accept(self._sampler, token)
            text += self._vocabulary.pieces[token]
        return None


def accepts(grammar: str, text: str) -> bool:
    """Whether the grammar allows `text`."""
    with Grammar(grammar) as made:
        return made.accepts(text)


def taken(grammar: str) -> bool:
    """Whether llama.cpp takes the grammar."""
    try:
        with Grammar(grammar):
            return True
    except AssertionError:
        return False
