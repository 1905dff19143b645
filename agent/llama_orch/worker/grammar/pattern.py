"""Regular expressions of JSON schemas, as GBNF for what stands between a JSON string's quotes.

Only what describes a regular language can become a grammar: no looking ahead or back, no back references.
Source: JSON Schema's "Regular expressions" (a subset of ECMA-262).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .. import budget
from ..generation import WrongGrammar
from . import gbnf

_LAST = 0x10FFFF
_Ranges = list[tuple[int, int]]

_DIGIT: _Ranges = [(48, 57)]
_WORD: _Ranges = [(48, 57), (65, 90), (95, 95), (97, 122)]
_SPACE: _Ranges = [(9, 13), (32, 32), (0xA0, 0xA0)]
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
# A JSON string has these only behind a backslash.
_ESCAPED = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\"}
_REPETITION = re.compile(r"\*|\+|\?|\{[0-9]{1,9}(?:,[0-9]{0,9})?\}")
_CODE = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
_GROUP_NAME = re.compile(r"P?<[A-Za-z_][A-Za-z0-9_]{0,63}>")


def rule(pattern: str, define: Callable[[str], str], anything: str) -> str:
    """The GBNF of `pattern`; `define` gives a part a name, `anything` is any text. Raises WrongGrammar."""
    return _Reader(pattern, define, anything).read()


class _Reader:
    def __init__(self, pattern: str, define: Callable[[str], str], anything: str) -> None:
        self._pattern = pattern
        self._place = 0
        self._define = define
        self._anything = anything

    def read(self) -> str:
        choices = self._choices(0)
        if self._place < len(self._pattern):
            raise self._wrong("a bracket is closed that was not opened")
        return choices

    def _wrong(self, reason: str) -> WrongGrammar:
        return WrongGrammar(f"pattern '{self._pattern[:80]}': {reason}")

    def _taken(self, text: str) -> bool:
        """Whether `text` comes next; it is passed over then."""
        if not self._pattern.startswith(text, self._place):
            return False
        self._place += len(text)
        return True

    def _next(self) -> str:
        if self._place >= len(self._pattern):
            raise self._wrong("it ends in the middle")
        self._place += 1
        return self._pattern[self._place - 1]

    def _choices(self, depth: int) -> str:
        if depth > gbnf.MAX_NESTING:
            raise self._wrong("its brackets are nested too deep")
        choices = [self._sequence(depth)]
        while self._taken("|"):
            choices.append(self._sequence(depth))
        return " | ".join(choices)

    def _sequence(self, depth: int) -> str:
        # Without an anchor a pattern may be found anywhere in the text.
        parts = [] if depth or self._taken("^") else [self._anything]
        ends = False
        while self._place < len(self._pattern) and self._pattern[self._place] not in "|)":
            if ends or self._taken("^"):
                raise self._wrong("^ and $ may only stand at its begin and its end")
            if self._taken("$"):
                ends = True
                continue
            budget.spend()
            part = self._part(depth)
            if repetition := _REPETITION.match(self._pattern, self._place):
                self._place = repetition.end()
                # Lazy or greedy, the texts that match are the same.
                self._taken("?")
                part += repetition[0]
            parts.append(part)
        if ends and depth:
            raise self._wrong("^ and $ may only stand at its begin and its end")
        if not ends and not depth:
            parts.append(self._anything)
        return " ".join(parts) or '""'

    def _part(self, depth: int) -> str:
        char = self._next()
        if char == "(":
            return self._group(depth)
        if char == "[":
            return self._set()
        if char == ".":
            return self._one_of(_without([(10, 10), (13, 13)]))
        if char == "\\":
            return self._one_of(self._escaped(in_set=False))
        if char in "*+?":
            raise self._wrong(f"{char} follows nothing that it could repeat")
        return self._one_of([(ord(char), ord(char))])

    def _group(self, depth: int) -> str:
        if self._taken("?") and not self._taken(":"):
            name = _GROUP_NAME.match(self._pattern, self._place)
            if not name:
                raise self._wrong("looking ahead or back is more than a grammar can do")
            self._place = name.end()
        choices = self._choices(depth + 1)
        if not self._taken(")"):
            raise self._wrong("a bracket is not closed")
        return self._define(choices)

    def _set(self) -> str:
        negative = self._taken("^")
        ranges: _Ranges = []
        while not self._taken("]"):
            budget.spend()
            first = self._member()
            if self._pattern.startswith("-", self._place) and not self._pattern.startswith("-]", self._place):
                self._place += 1
                last = self._member()
                if first[0][0] > last[-1][1] or len(first) > 1 or len(last) > 1:
                    raise self._wrong("a range begins behind its end")
                first = [(first[0][0], last[0][1])]
            ranges += first
        return self._one_of(_without(ranges) if negative else ranges)

    def _member(self) -> _Ranges:
        char = self._next()
        return self._escaped(in_set=True) if char == "\\" else [(ord(char), ord(char))]

    def _escaped(self, *, in_set: bool) -> _Ranges:
        if code := _CODE.match(self._pattern, self._place):
            self._place = code.end()
            value = int(code[1] or code[2] or code[3], 16)
            if value > _LAST:
                raise self._wrong("it names a character that does not exist")
            return [(value, value)]
        char = self._next()
        ranges = {"d": _DIGIT, "w": _WORD, "s": _SPACE}.get(char.lower())
        if ranges is not None:
            return ranges if char.islower() else _without(ranges)
        if char in _CONTROLS or (in_set and char == "b"):
            value = _CONTROLS.get(char, 8)
        elif char.isalnum():
            raise self._wrong(f"\\{char} is more than a grammar can do")
        else:
            value = ord(char)
        return [(value, value)]

    def _one_of(self, ranges: _Ranges) -> str:
        """One character of `ranges`, written as in a JSON string."""
        choices: list[str] = []
        safe = _without([*_without(ranges), (0, 31), (34, 34), (92, 92)])
        if safe:
            choices.append("[" + "".join(_shown(first, last) for first, last in safe) + "]")
        for code, letter in _ESCAPED.items():
            if any(first <= code <= last for first, last in ranges):
                choices.append(gbnf.literal("\\" + letter))
        if not choices:
            raise self._wrong("it asks for a character that no text has")
        return choices[0] if len(choices) == 1 else self._define(" | ".join(choices))


def _without(ranges: _Ranges) -> _Ranges:
    """All characters but those of `ranges`."""
    left: _Ranges = []
    begin = 0
    for first, last in sorted(ranges):
        if first > begin:
            left.append((begin, first - 1))
        begin = max(begin, last + 1)
    return [*left, (begin, _LAST)] if begin <= _LAST else left


def _shown(first: int, last: int) -> str:
    return gbnf.member(first) if first == last else f"{gbnf.member(first)}-{gbnf.member(last)}"
