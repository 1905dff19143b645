"""Room for llama.cpp's pre-tokenizers, which call themselves for each character of a word.

Models with a vocabulary of the BPE kind cut a text up by a regular expression first, and where llama.cpp has no code
of its own for it (gpt-4o, tekken, deepseek, llama4 and some fifty more), by `std::regex`: that takes 377 bytes of the
stack for each character of one match (GCC 12, x86-64), so that 22,000 letters in a row end a process whose threads
have 8 MiB (llama.cpp's issue 27783). Here a text gets a thread whose stack would do were all of it one match. What is
not used of a stack takes no memory; what may be used of it is bounded by how long a run may be.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TypeVar

from ..generation import TextRefused

BYTES_PER_CHARACTER = 1024
SPARE_BYTES = 1024 * 1024
# Below it any thread's stack will do.
FEW_CHARACTERS = 512
# Twice what the largest body can hold: a template may write a text more than once.
MOST_CHARACTERS = 32 * 1024 * 1024
# No match is longer than two runs, so that many characters' room does for any text.
MOST_ROOM = 2 * 1024 * 1024
# Takes 25 MB of stack while it is tokenized.
MOST_RUN = 65_536
# Letters with all that is not ASCII, digits, white space, signs: no match goes over more than two of them.
_RUNS = re.compile(r"[^\x00-@\[-`{-\x7f\s]+|[0-9]+|\s+|[^A-Za-z0-9\s\x80-\U0010ffff]+")
# But of these kinds: words with the spaces between them, and whatever has no space in it.
_LONGER_RUNS = {"exaone-moe": re.compile(r"[^\x00-\x1f!-@\[-`{-\x7f]+"), "whitespace": re.compile(r"\S+")}
# Looks ahead to the end of the digits from each of them.
_SQUARED = {"superbpe": re.compile(r"[0-9]+")}
MOST_SQUARED = 50_000_000

T = TypeVar("T")
_starting = threading.Lock()


def check(text: str, pre_tokenizer: str) -> None:
    """Refuse what would take a pre-tokenizer too much memory or time. Raises TextRefused, which says what."""
    if len(text) > MOST_CHARACTERS:
        raise TextRefused(f"it is {len(text)} characters long, and this model takes at most {MOST_CHARACTERS}")
    squared = _SQUARED.get(pre_tokenizer)
    if squared is not None and sum(len(run) ** 2 for run in squared.findall(text)) > MOST_SQUARED:
        raise TextRefused("it has too many digits in a row for this model; put spaces between them")
    if len(text) <= MOST_RUN:
        return
    for runs in (_RUNS, _LONGER_RUNS.get(pre_tokenizer)):
        longest = max((found[0] for found in runs.finditer(text)), key=len, default="") if runs else ""
        if len(longest) > MOST_RUN:
            raise TextRefused(
                f"it has a run of {len(longest)} characters without a break (it begins with {longest[:20]!r}), and "
                f"this model takes at most {MOST_RUN}; break it up by spaces, line breaks or punctuation"
            )


def with_room_for(characters: int, work: Callable[[], T]) -> T:
    """Do `work` where the stack has room for a match of so many characters. Raises TextRefused where there is none."""
    if characters <= FEW_CHARACTERS:
        return work()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    size = SPARE_BYTES + min(characters, MOST_ROOM) * BYTES_PER_CHARACTER
    thread = threading.Thread(target=run, name="deep-stack", daemon=True)
    with _starting:
        # The only way to say it holds for all threads that are started meanwhile; for others it is too much at worst.
        before = threading.stack_size(size // 4096 * 4096)
        try:
            thread.start()
        except RuntimeError:
            raise TextRefused("the machine has no memory left to read a text of this length") from None
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
