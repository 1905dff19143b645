"""GBNF, llama.cpp's grammar language: writing it, and refusing what would take the process down.

llama.cpp parses and runs a grammar inside the worker's process, where some short texts end it: brackets nested ten
thousand deep, a rule that comes back to itself behind an empty one, thirty rules that double their choices. It
notices none of these beforehand, so every grammar is checked here first. No look at the grammar alone can tell whether
its readings multiply while text comes: that is counted while it runs (`sampler.py`).
Source: llama.cpp's `grammars/README.md`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from .. import budget
from ..generation import WrongGrammar

MAX_NESTING = 64
# What llama.cpp holds in memory for each answer: each repetition is written out. So many take some 15 MB.
MAX_ELEMENTS = 250_000
# Places in the grammar that one character may belong to; each of them judges every token of the vocabulary.
MAX_CHOICES = 1000
# Above this llama.cpp takes a repetition's upper limit for none.
MAX_REPETITIONS = 2000

# Nothing in it may be read in two ways: what follows a name may be a long line of whatever a client likes.
_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r\n]+|\#[^\r\n]*)
    |(?P<define>[A-Za-z0-9-]++(?=[ \t]*::=))|(?P<is>::=)
    |(?P<rule>[A-Za-z0-9-]++)
    |(?P<literal>"(?:\\.|[^"\\])*+")|(?P<set>\[(?:\\.|[^\]\\])*+\])|(?P<one>\.|!?<[^>]*+>)
    |(?P<repeat>[*+?]|\{[^}]{0,40}\})|(?P<open>\()|(?P<close>\))|(?P<or>\|)""",
    re.VERBOSE | re.DOTALL,
)
_BOUNDS = re.compile(r"\{\s*+([0-9]++)\s*+(?:(,)\s*+([0-9]*+)\s*+)?\}")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def literal(text: str) -> str:
    """`text` as a literal of a grammar."""
    return '"' + "".join(_ESCAPES.get(char) or (char if char >= " " else f"\\x{ord(char):02X}") for char in text) + '"'


def member(code: int) -> str:
    """A character as it stands in a set, in `[…]`."""
    return chr(code) if chr(code).isascii() and chr(code).isalnum() else f"\\U{code:08X}"


def prefixed(grammar: str, prefix: str) -> str:
    """The same grammar with `prefix` before each of its rules' names, to stand beside others."""
    return "".join(
        prefix + text if kind in ("define", "rule") else text for kind, text in _tokens(grammar, skipped=True)
    )


def check(grammar: str) -> None:
    """Raise WrongGrammar where llama.cpp would not survive the grammar, or would not take it."""
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in grammar):
        raise WrongGrammar("it has a character that no text can have")
    rules = _Parser(grammar).rules
    if "root" not in rules:
        raise WrongGrammar("it has no rule named root")
    for rule in rules.values():
        for item in (item for sequence in rule for item in sequence):
            if item.rule is not None and item.rule not in rules:
                raise WrongGrammar(f"the rule '{item.rule}' is used but not defined", "a part of it is missing")
    if sum(item.elements for rule in rules.values() for sequence in rule for item in sequence) > MAX_ELEMENTS:
        raise WrongGrammar("its repetitions make it too large")
    _check_choices(rules, _may_be_empty(rules))


@dataclass
class _Item:
    """A part of a sequence: characters, or a rule where `rule` names one. `most` is None for no upper limit."""

    rule: str | None
    length: int = 1
    least: int = 1
    most: int | None = 1

    @property
    def elements(self) -> int:
        """What it takes in llama.cpp's memory: each optional repetition becomes a rule with a copy in it."""
        optional = 1 if self.most is None else self.most - self.least
        return self.length * self.least + (self.length + 3) * optional


_Sequence = list[_Item]
_Rules = dict[str, list[_Sequence]]


class _Parser:
    """Reads a grammar; a group in brackets becomes a rule of its own, as llama.cpp has it."""

    def __init__(self, grammar: str) -> None:
        self.rules: _Rules = {}
        self._tokens = _tokens(grammar)
        self._kind, self._text = next(self._tokens, ("end", ""))
        while self._kind != "end":
            name = self._take("define", "a rule begins with its name and ::=")
            self._take("is", "a rule begins with its name and ::=")
            if name in self.rules:
                raise WrongGrammar(f"the rule '{name}' is defined twice")
            self.rules[name] = []
            self._choices(name, 0)

    def _take(self, kind: str, otherwise: str) -> str:
        if self._kind != kind:
            raise WrongGrammar(f"{otherwise}, not with '{self._text[:40]}'")
        text = self._text
        self._kind, self._text = next(self._tokens, ("end", ""))
        return text

    def _choices(self, name: str, depth: int) -> None:
        if depth > MAX_NESTING:
            raise WrongGrammar(f"its brackets are nested more than {MAX_NESTING} deep")
        self.rules[name].append(self._sequence(depth))
        while self._kind == "or":
            self._take("or", "")
            self.rules[name].append(self._sequence(depth))

    def _sequence(self, depth: int) -> _Sequence:
        items: _Sequence = []
        while self._kind in ("rule", "literal", "set", "one", "open", "repeat"):
            kind, text = self._kind, self._take(self._kind, "")
            if kind == "repeat":
                self._repeat(items, text)
            elif kind == "rule":
                items.append(_Item(text))
            elif kind == "open":
                # No rule of the grammar's own can be named so.
                name = f"({len(self.rules)}"
                self.rules[name] = []
                self._choices(name, depth + 1)
                self._take("close", "a bracket ends with )")
                items.append(_Item(name))
            else:
                items.append(_Item(None, len(text) if kind == "one" else len(text) - 2 - text.startswith("[^")))
        return [item for item in items if item.length]

    @staticmethod
    def _repeat(items: _Sequence, text: str) -> None:
        bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(text)
        if bounds is None:
            found = _BOUNDS.fullmatch(text)
            if not found:
                raise WrongGrammar(f"{text} is no repetition: it is {{2}}, {{2,}} or {{2,3}}")
            least, comma, most = int(found[1]), found[2], found[3]
            bounds = (least, int(most) if most else None if comma else least)
        least, most = bounds
        if most is not None and most > MAX_REPETITIONS:
            most = None
        if least > MAX_REPETITIONS or (most is not None and most < least):
            raise WrongGrammar(f"{text}: at most {MAX_REPETITIONS} repetitions, the smaller number first")
        # llama.cpp lets a second repetition multiply the first; written with brackets it can be counted.
        if not items or not items[-1].length or (items[-1].least, items[-1].most) != (1, 1):
            raise WrongGrammar(f"{text} follows nothing that it could repeat")
        items[-1].least, items[-1].most = least, most


def _tokens(grammar: str, *, skipped: bool = False) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(grammar):
        found = _TOKEN.match(grammar, place)
        if not found or found.lastgroup is None:
            raise WrongGrammar(f"nothing that a grammar may have begins with '{grammar[place : place + 40]}'")
        place = found.end()
        budget.spend()
        if skipped or found.lastgroup != "skip":
            yield found.lastgroup, found[0]


def _may_be_empty(rules: _Rules) -> set[str]:
    """The rules that allow the empty text."""
    sequences = [(name, [item.rule for item in one if item.least]) for name, rule in rules.items() for one in rule]
    missing = [len(needed) for _, needed in sequences]
    users: dict[str, list[int]] = defaultdict(list)
    for number, (_, needed) in enumerate(sequences):
        for rule in needed:
            if rule is not None:
                users[rule].append(number)
    empty: set[str] = set()
    found = [name for name, needed in sequences if not needed]
    while found:
        name = found.pop()
        if name in empty:
            continue
        empty.add(name)
        for number in users[name]:
            missing[number] -= 1
            if not missing[number]:
                found.append(sequences[number][0])
    return empty


def _check_choices(rules: _Rules, empty: set[str]) -> None:
    """Raise WrongGrammar where a rule begins with itself, or too many places may take the next character."""

    def optional(item: _Item) -> bool:
        return not item.least or item.rule in empty

    def beginning(sequence: _Sequence) -> Iterator[_Item]:
        for item in sequence:
            yield item
            if not optional(item):
                return

    def choices_of(item: _Item) -> int:
        own = 1 if item.rule is None else choices[item.rule]
        return own * max(item.least, 2 if item.most is None else item.most) if item.rule in empty else own

    begins = {
        name: {item.rule for sequence in rule for item in beginning(sequence) if item.rule is not None}
        for name, rule in rules.items()
    }
    try:
        order = list(TopologicalSorter(begins).static_order())
    except CycleError as error:
        name = next((name for name in error.args[1] if not name.startswith("(")), "root")
        raise WrongGrammar(f"the rule '{name}' may begin with itself", "a part of it may begin with itself") from None
    choices: dict[str, int] = {}
    for name in order:
        choices[name] = 1 + sum(choices_of(item) for sequence in rules[name] for item in beginning(sequence))
        if choices[name] > MAX_CHOICES:
            raise WrongGrammar(
                f"more than {MAX_CHOICES} ways to begin {_called(name)}",
                f"more than {MAX_CHOICES} ways to begin a part",
            )
    for name, rule in rules.items():
        for sequence in rule:
            ahead = 0
            for item in reversed(sequence):
                ahead = choices_of(item) + (ahead if optional(item) else 0)
                if ahead > MAX_CHOICES:
                    raise WrongGrammar(
                        f"more than {MAX_CHOICES} ways to go on at one place of {_called(name)}",
                        f"more than {MAX_CHOICES} ways to go on at one place",
                    )


def _called(name: str) -> str:
    """A rule as who wrote the grammar knows it; what stands in brackets has no name of its own."""
    return "what is in brackets" if name.startswith("(") else f"the rule '{name}'"
