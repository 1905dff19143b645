"""How large a request may be: what fills a slot's context must fit in, and no more than that."""

from __future__ import annotations

from llama_orch.contract.openai.request import MAX_TEXT
from llama_orch.contract.process import DEFAULT_CONTEXT, WorkerSpec

# A token of most texts is four bytes, or up to twelve as JSON writes them with a backslash; a request carries more
# than its text besides.
BYTES_PER_TOKEN = 32
LEAST, MOST = 1024 * 1024, MAX_TEXT


def most_bytes(context: int) -> int:
    """The largest body where a slot has a context of so many tokens."""
    return max(LEAST, min(MOST, context * BYTES_PER_TOKEN))


def most_bytes_of(spec: WorkerSpec) -> int:
    """The same before the model is loaded; a context that nobody asked for is never larger than the default."""
    return most_bytes(spec.ctx_per_slot or DEFAULT_CONTEXT)


def scale(context: int) -> int:
    """How many times the memory of a small body's conversation a template may take."""
    return 1 + most_bytes(context) // (4 * LEAST)
