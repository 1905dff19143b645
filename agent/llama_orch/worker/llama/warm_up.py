"""What a worker computes before it serves: as much at once as requests may ask for, so that it fails now or never."""

from __future__ import annotations

from ..scheduler import Part

# The kernels for many rows of quantised weights are other code than those for one (AMX, other orders of the weights),
# so that a single token shows nothing of them. On a slow processor a large model's full batch could take minutes.
MOST_SECONDS = 20.0
LEAST_TOKENS = 64
# The output's weights are often of another kind than the blocks', and rows of logits are their rows. All of a batch
# would hold on to a row of the vocabulary for each.
OUTPUTS = 16


def batch_tokens(most: int, seconds_for_one: float) -> int:
    """How many of `most` tokens to compute in one batch, where one alone took so many seconds.

    A batch takes less for each of its tokens than one alone does, so MOST_SECONDS is what it takes at most.
    """
    affordable = int(MOST_SECONDS / seconds_for_one) if seconds_for_one > 0 else most
    return min(most, max(LEAST_TOKENS, affordable))


def steps(count: int, *, vocabulary: int, longest: int, slots: int, vectors: bool) -> list[list[Part]]:
    """A full step of `count` tokens from all over the vocabulary, and one in which every slot draws.

    No sequence gets more than the `longest` may have. `vectors`: all in one sequence, and every token gives an output,
    as models that make vectors want it; they draw nothing.
    """
    tokens = [number * vocabulary // count for number in range(count)]
    if vectors:
        return [[Part(0, tokens, 0, "all")]]
    sequences = [tokens[begin : begin + longest] for begin in range(0, count, longest)]
    silent = max(0, len(sequences[0]) - OUTPUTS)
    first = [Part(0, sequences[0][:silent], 0), Part(0, sequences[0][silent:], silent, "all")]
    others = [Part(number, held, 0) for number, held in enumerate(sequences[1:], 1)]
    drawing = [Part(slot, [tokens[slot * count // slots]], 0, "last") for slot in range(slots)]
    return [[part for part in first if part.tokens] + others, drawing]
