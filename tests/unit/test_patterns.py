"""Every regular expression of the package against long texts that are made for it: none may take more than its length.

What counts is how the time grows with the text, never the time itself: what is linear takes four times as long for a
text of four times the length, what tries each beginning with each end sixteen times as long, and what reads a text in
two ways never ends.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import re._constants as op  # pyright: ignore[reportMissingImports]
import re._parser as parser  # pyright: ignore[reportMissingImports]
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import llama_orch
from llama_orch.contract import patterns
from llama_orch.queen.ansible import failures

LENGTH = 10_000
GROWN = 4
# Four would be linear, sixteen quadratic.
MOST_GROWTH = 9.0
# Below it a linear pattern has done with the longer text, and the clock's own steps would tell nothing.
NOTICED_SECONDS = 0.02
NEVER_SECONDS = 2.0
METHODS = ("search", "match", "fullmatch", "split", "sub", "findall", "finditer")


class Found(NamedTuple):
    where: str
    pattern: re.Pattern[Any]
    methods: frozenset[str]


def modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages(llama_orch.__path__, "llama_orch."):
        # A program, and what Alembic runs in a context of its own.
        if not info.name.endswith(("__main__", "migrations.env")):
            yield importlib.import_module(info.name)


def inside(value: object) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from inside(one)


def of_module(module: ModuleType) -> Iterator[Found]:
    source = Path(module.__file__ or "").read_text()
    for name, value in vars(module).items():
        for pattern in inside(value):
            used = frozenset(re.findall(rf"\b{re.escape(name)}\.({'|'.join(METHODS)})\(", source))
            yield Found(f"{module.__name__}.{name}", pattern, used or frozenset({"fullmatch"}))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            of, first = node.func.value, node.args[0]
            written = isinstance(first, ast.Constant) and isinstance(first.value, (str, bytes))
            if isinstance(of, ast.Name) and of.id == "re" and node.func.attr in METHODS and written:
                where = f"{module.__name__}:{node.lineno}"
                yield Found(where, re.compile(first.value), frozenset({node.func.attr}))  # pyright: ignore


def all_patterns() -> list[Found]:
    found = [one for module in modules() for one in of_module(module)]
    found += [
        Found(f"patterns.{name}", re.compile(text), frozenset({"fullmatch"}))
        for name, text in vars(patterns).items()
        if name.isupper() and isinstance(text, str)
    ]
    found += [Found(f"failures:{known[1]}", re.compile(known[0]), frozenset({"search"})) for known in failures._KNOWN]
    return list({(one.pattern.pattern, one.methods): one for one in found}.values())


# --- texts that a pattern nearly likes


def example(parts: Any) -> str:
    """The shortest text that these parts of a pattern match, as far as looking around lets it."""
    return "".join(of_part(kind, value) for kind, value in parts)


def of_part(kind: Any, value: Any) -> str:  # noqa: PLR0911  one for each kind
    if kind is op.LITERAL:
        return chr(value)
    if kind in (op.NOT_LITERAL, op.ANY):
        return "a" if value != ord("a") else "b"
    if kind is op.IN:
        return of_set(value)
    if kind is op.BRANCH:
        return example(value[1][0])
    if kind is op.SUBPATTERN:
        return example(value[3])
    if kind is op.ATOMIC_GROUP:
        return example(value)
    if kind in REPEATS:
        return example(value[2]) * max(value[0], 1)
    return ""


REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)


def of_set(members: Any) -> str:
    pool = "a1 -_.\"'#/\n"
    kinds = {op.CATEGORY_DIGIT: r"\d", op.CATEGORY_SPACE: r"\s", op.CATEGORY_WORD: r"\w", op.CATEGORY_NOT_SPACE: r"\S"}
    negative = any(kind is op.NEGATE for kind, _ in members)
    allowed = [
        char
        for char in [*pool, *(chr(value) for kind, value in members if kind is op.LITERAL),
                     *(chr(value[0]) for kind, value in members if kind is op.RANGE)]
        if negative != any(
            (kind is op.LITERAL and ord(char) == value)
            or (kind is op.RANGE and value[0] <= ord(char) <= value[1])
            or (kind is op.CATEGORY and re.match(kinds.get(value, r"\w"), char) is not None)
            for kind, value in members
        )
    ]  # fmt: skip
    return allowed[0] if allowed else "a"


def pumps(parts: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """What leads to each repetition, and what it repeats; each literal piece too."""
    for kind, value in parts:
        if kind in REPEATS:
            once = example(value[2])
            yield before, once
            yield from pumps(value[2], before)
            for branch in branches(value[2]):
                yield before, branch
        elif kind is op.SUBPATTERN:
            yield from pumps(value[3], before)
        elif kind is op.ATOMIC_GROUP:
            yield from pumps(value, before)
        elif kind in (op.ASSERT, op.ASSERT_NOT):
            yield from pumps(value[1], before)
        elif kind is op.BRANCH:
            for branch in value[1]:
                yield from pumps(branch, before)
        before += of_part(kind, value)
        yield "", before


def branches(parts: Any) -> Iterator[str]:
    for kind, value in parts:
        if kind is op.BRANCH:
            yield from (example(branch) for branch in value[1])
        elif kind is op.SUBPATTERN:
            yield from branches(value[3])
        elif kind is op.IN:
            yield from (of_set([member]) for member in value if member[0] is not op.NEGATE)


def texts(pattern: re.Pattern[Any]) -> list[tuple[str, str]]:
    parsed = parser.parse(pattern.pattern, pattern.flags)
    made = list(pumps(parsed))
    # What comes behind a repetition may stand in it as well, again and again.
    words = list(dict.fromkeys(literals(parsed)))[:8]
    made += [(lead, word) for lead in dict.fromkeys(lead for lead, _ in made) for word in words]
    return [(lead, pump) for lead, pump in dict.fromkeys(made) if pump]


def literals(parts: Any) -> Iterator[str]:
    word = ""
    for kind, value in parts:
        if kind is op.LITERAL:
            word += chr(value)
            continue
        yield word
        word = ""
        if kind is op.SUBPATTERN:
            yield from literals(value[3])
        elif kind in REPEATS:
            yield from literals(value[2])
    yield word


def seconds(found: Found, method: str, text: str) -> float:
    given: Any = text.encode("latin-1", "replace") if isinstance(found.pattern.pattern, bytes) else text
    began = time.thread_time()
    if method == "sub":
        found.pattern.sub(given[:0], given)
    elif method == "finditer":
        for _ in found.pattern.finditer(given):
            pass
    else:
        getattr(found.pattern, method)(given)
    return time.thread_time() - began


class NeverEnds(Exception):
    pass


def slow(found: Found) -> str | None:
    """The text on which the pattern takes more than its length, shortened; None where there is none."""

    def give_up(*_: object) -> None:
        raise NeverEnds

    before = signal.signal(signal.SIGPROF, give_up)
    lead, pump = "", ""
    try:
        for lead, pump in texts(found.pattern):
            for method in found.methods:
                for end in ("\x01", "", "\n\x01"):
                    signal.setitimer(signal.ITIMER_PROF, NEVER_SECONDS)
                    count = max(1, LENGTH // len(pump))
                    long = seconds(found, method, lead + pump * count * GROWN + end)
                    if long < NOTICED_SECONDS:
                        continue
                    short = min(seconds(found, method, lead + pump * count + end) for _ in range(3))
                    if min(long, seconds(found, method, lead + pump * count * GROWN + end)) > MOST_GROWTH * short:
                        return f"{method}: {lead!r} + {pump!r} * n + {end!r}"
    except NeverEnds:
        return f"{lead!r} + {pump!r} * n never ends"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return None


@pytest.mark.parametrize("found", all_patterns(), ids=lambda found: found.where)
def test_a_pattern_takes_no_more_than_the_length_of_its_text(found: Found):
    assert slow(found) is None, found.pattern.pattern


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"[A-Za-z0-9-]+(?=(?:[ \t]|\#[^\r\n]*)*::=)", "match"),
        (r"raise_exception\(\s*['\"][^'\"]*system[^'\"]*\bnot\b", "search"),
        (r"[\w.+-]+:\d+: CUDA error$", "search"),
        (r"Connection to .* closed", "search"),
        (r"(a+)+$", "match"),
    ],
)
def test_a_slow_pattern_is_found(pattern: str, method: str):
    assert slow(Found("", re.compile(pattern), frozenset({method}))) is not None
