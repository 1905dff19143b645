"""How far the same greedy answers drift apart: `python -m tests.bench.divergence`.

The bench model's weights are random, so its two likeliest tokens are often nearly equal, and small differences decide.
Each prompt is answered by `llama_cpp.Llama`, by our engine alone, and by our engine with seven neighbours. Up to the
first token that differs the logits are compared; from there on the texts are two different ones. The last line printed
is one JSON object; the exit code is 1 where any logit differs by more than TOLERANCE.

`Llama` computes without flash attention unless told otherwise; llama.cpp's own default, and so ours, is with it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from llama_orch.contract.process import WorkerSpec
from llama_orch.worker.llama.engine import LlamaEngine
from llama_orch.worker.scheduler import Part

from .bench_model import bench_model, prompt
from .llama_cpp_build import bench_cache

PROMPT_TOKENS, NEIGHBOURS, CONTEXT = 32, 8, 1024
# The model's logits have a standard deviation of about 1.
TOLERANCE = 0.01
Logits = NDArray[np.float32]


@dataclass
class Compared:
    """One way of computing beside the reference."""

    answers: int = 0
    diverged: int = 0
    tokens_compared: int = 0
    largest_difference: float = 0.0
    first_divergences: list[int] = field(default_factory=list[int])

    def add(self, ours: list[Logits], reference: list[Logits]) -> None:
        """Compare one answer, token by token, up to the first that differs."""
        self.answers += 1
        for place, (mine, other) in enumerate(zip(ours, reference, strict=True)):
            self.tokens_compared += 1
            self.largest_difference = max(self.largest_difference, float(np.abs(mine - other).max()))
            if mine.argmax() != other.argmax():
                self.diverged += 1
                self.first_divergences.append(place)
                return


def _engine(model: Path, slots: int, threads: int) -> LlamaEngine:
    spec = WorkerSpec(
        worker_id="bench", model_path=str(model), model_name="bench", host="127.0.0.1", port=1, backend="cpu",
        slots=slots, ctx_per_slot=CONTEXT,
    )  # fmt: skip
    engine = LlamaEngine(spec, threads)
    engine.load(lambda _: True)
    return engine


def _together(engine: LlamaEngine, prompts: list[list[int]], count: int) -> list[list[Logits]]:
    """The logits of each greedy token, all prompts decoded in the same steps."""
    logits: list[list[Logits]] = [[] for _ in prompts]
    parts = [Part(sequence, tokens, 0, "last") for sequence, tokens in enumerate(prompts)]
    for _ in range(count):
        engine.decode(parts)
        for sequence in range(len(prompts)):
            logits[sequence].append(engine.logits(sequence).copy())
        parts = [
            Part(sequence, [int(logits[sequence][-1].argmax())], part.position + len(part.tokens), "last")
            for sequence, part in enumerate(parts)
        ]
    for sequence in range(len(prompts)):
        engine.keep(sequence, 0)
    return logits


def _reference(model: Any, tokens: list[int], count: int) -> list[Logits]:
    """The same by llama-cpp-python's own class."""
    model.reset()
    model.eval(tokens)
    logits: list[Logits] = []
    for _ in range(count):
        logits.append(np.array(model._scores[-1], dtype=np.float32))
        model.eval([int(logits[-1].argmax())])
    return logits


def _batches(prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    left = iter(prompts)
    while batch := list(itertools.islice(left, NEIGHBOURS)):
        yield batch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.divergence", description=__doc__)
    parser.add_argument("--prompts", type=int, default=32, help="how many (default: 32)")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer (default: 64)")
    parser.add_argument("--plain-attention", action="store_true", help="the reference without flash attention")
    options = parser.parse_args()
    path, threads = bench_model(bench_cache()), len(os.sched_getaffinity(0))
    several, single = _engine(path, NEIGHBOURS, threads), _engine(path, 1, threads)
    reference: Any = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_batch=512, n_threads=threads, logits_all=True, verbose=False,
        flash_attn=not options.plain_attention,
    )  # fmt: skip
    draw = Random(7)
    prompts = [several.tokenize(prompt(PROMPT_TOKENS, draw)) for _ in range(options.prompts)]
    expected = [_reference(reference, tokens, options.tokens) for tokens in prompts]
    alone, in_company = Compared(), Compared()
    for tokens, logits in zip(prompts, expected, strict=True):
        alone.add(_together(single, [tokens], options.tokens)[0], logits)
    answers = itertools.chain.from_iterable(_together(several, batch, options.tokens) for batch in _batches(prompts))
    for ours, logits in zip(answers, expected, strict=True):
        in_company.add(ours, logits)
    spread = float(np.mean([logits[0].std() for logits in expected]))
    largest = max(alone.largest_difference, in_company.largest_difference)
    result = {
        "alone": vars(alone),
        "in_company": vars(in_company),
        "standard_deviation_of_logits": round(spread, 3),
        "tolerance": TOLERANCE,
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return int(largest > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
