"""One request's draws: llama.cpp's samplers in a chain, and a grammar beside them."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from ..generation import GenerationFailed, Sampling, TooAmbiguous
from .binding import GrammarSteps, llama_cpp

# As far back as penalties look.
PENALIZED_TOKENS = 1024
# What a grammar may take for one token, in llama.cpp's own steps of some nanoseconds: to judge every token of the
# vocabulary once takes some twenty for each. Above it, it takes many times more for each token that follows.
STEPS_PER_TOKEN, MOST_STEPS = 256, 20_000_000
# The same in CPU time, for a build that counts no steps: it is looked at when all is done.
GRAMMAR_SECONDS = 0.5
TOO_AMBIGUOUS = "the grammar is too ambiguous: it takes ever longer to tell what may follow"
NOTHING_FITS = "no token of the model fits what the grammar allows next"


class _Vocabulary(Protocol):
    """What is drawn from: the engine with its model (`engine.LlamaEngine`), where these are described."""

    grammar_steps: GrammarSteps

    @property
    def vocabulary(self) -> int: ...
    def ends(self) -> frozenset[int]: ...
    def piece(self, token: int, *, special: bool = False) -> bytes: ...
    def byte_token(self, byte: int) -> int | None: ...
    def grammar(self, text: str) -> Any: ...
    def sample(self, chain: Any, row: int) -> int: ...
    def logits(self, row: int) -> np.ndarray[Any, np.dtype[np.float32]]: ...


class LlamaSampler:
    """One request's chain of llama.cpp's samplers, and its grammar beside it.

    The grammar judges the drawn token first: that is cheap, and only where it objects are all tokens judged. A token
    that no rule allows is never accepted into the grammar, as llama.cpp would end the process.
    """

    def __init__(self, engine: _Vocabulary, sampling: Sampling) -> None:
        self._engine = engine
        self._chain: Any = None
        self._grammar: Any = None
        self._waits_for: tuple[str, ...] = ()
        self._text = ""
        self.taken = 0.0
        self._steps = min(MOST_STEPS, STEPS_PER_TOKEN * engine.vocabulary)
        constraint = sampling.constraint
        if constraint is not None:
            self._grammar = engine.grammar(constraint.grammar)
            self._waits_for = constraint.after
        parts = list(_parts(engine, sampling))
        # What takes the likeliest token of untouched logits needs no sampler.
        if parts or sampling.temperature > 0:
            self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
            for part in [*parts, *_last(sampling)]:
                llama_cpp.llama_sampler_chain_add(self._chain, part)

    def draw(self, row: int) -> int:
        """The next token; see `generation.Sampler.draw`."""
        self.taken = 0.0
        if self._grammar is None or self._waits_for:
            token = self._engine.sample(self._chain, row) if self._chain else int(self._engine.logits(row).argmax())
            if self._waits_for:
                self.follow(self._engine.piece(token, special=True).decode(errors="replace"))
            return token
        began = time.thread_time()
        self._engine.grammar_steps.allow(self._steps)
        try:
            token = self._choose(row, by_grammar=False)
            if not self._fits(token):
                token = self._choose(row, by_grammar=True)
            self._accept(token)
        finally:
            self.taken = time.thread_time() - began
        if self._chain:
            llama_cpp.llama_sampler_accept(self._chain, token)
        if self.taken > GRAMMAR_SECONDS:
            raise TooAmbiguous(TOO_AMBIGUOUS)
        return token

    def _accept(self, token: int) -> None:
        """Let the grammar go on behind a token that fits. Raises GenerationFailed."""
        llama_cpp.llama_sampler_accept(self._grammar, token)
        self._within_steps()

    def _within_steps(self) -> None:
        if self._engine.grammar_steps.spent():
            raise TooAmbiguous(TOO_AMBIGUOUS)

    def _choose(self, row: int, *, by_grammar: bool) -> int:
        size = self._engine.vocabulary
        data = (llama_cpp.llama_token_data * size)()
        view = np.frombuffer(data, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        view["id"] = np.arange(size)
        view["logit"] = self._engine.logits(row)
        array = llama_cpp.llama_token_data_array(data, size, -1, False)
        if by_grammar:
            llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
            self._within_steps()
            if not np.isfinite(view["logit"]).any():
                raise GenerationFailed(NOTHING_FITS)
        if not self._chain:
            return int(view["logit"].argmax())
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        chosen = array.data[array.selected]
        if chosen.logit == -np.inf:
            raise GenerationFailed(NOTHING_FITS)
        return chosen.id

    def _fits(self, token: int) -> bool:
        one = (llama_cpp.llama_token_data * 1)((token, 0.0, 0.0))
        array = llama_cpp.llama_token_data_array(one, 1, -1, False)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        self._within_steps()
        return one[0].logit != -np.inf

    @property
    def held_to(self) -> bool:
        """Whether a grammar holds the next token."""
        return self._grammar is not None and not self._waits_for

    def follow(self, text: str) -> None:
        """More of the answer has come: begin with the grammar where it now has the word that this waits for."""
        longest = max(map(len, self._waits_for))
        self._text += text
        found = [(place, len(word)) for word in self._waits_for if (place := self._text.find(word)) >= 0]
        if not found:
            self._text = self._text[-longest:]
            return
        place, length = min(found)
        self._waits_for = ()
        self._engine.grammar_steps.allow(self._steps)
        for byte in self._text[place + length :].encode():
            # Byte by byte: to tokenize a text that goes on would put a space in front of it in some vocabularies.
            follows = self._engine.byte_token(byte)
            if follows is None or not self._fits(follows):
                # The model has begun something else; it goes on freely, and is read for what it is.
                llama_cpp.llama_sampler_free(self._grammar)
                self._grammar = None
                return
            self._accept(follows)

    def free(self) -> None:
        """Give the memory back; see `generation.Sampler.free`."""
        for sampler in (self._chain, self._grammar):
            if sampler:
                llama_cpp.llama_sampler_free(sampler)
        self._chain = self._grammar = None


def _parts(engine: _Vocabulary, sampling: Sampling) -> Iterator[Any]:
    biases = list(sampling.logit_bias)
    if sampling.ignore_eos:
        biases += [(token, -np.inf) for token in engine.ends()]
    if biases:
        array = (llama_cpp.llama_logit_bias * len(biases))(*biases)
        yield llama_cpp.llama_sampler_init_logit_bias(engine.vocabulary, len(biases), array)
    if sampling.presence_penalty or sampling.frequency_penalty or sampling.repeat_penalty != 1:
        yield llama_cpp.llama_sampler_init_penalties(
            engine.vocabulary,
            PENALIZED_TOKENS,
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )


def _last(sampling: Sampling) -> Iterator[Any]:
    if sampling.temperature == 0:
        yield llama_cpp.llama_sampler_init_greedy()
        return
    if sampling.top_k:
        yield llama_cpp.llama_sampler_init_top_k(sampling.top_k)
    if sampling.top_p < 1:
        yield llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p:
        yield llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1)
    yield llama_cpp.llama_sampler_init_temp(sampling.temperature)
    yield llama_cpp.llama_sampler_init_dist(sampling.seed)
