"""Reading tool calls out of an answer while it comes."""

from __future__ import annotations

import json
import re
import secrets
import string
from dataclasses import dataclass
from typing import Any, Literal

_LETTERS = string.ascii_letters + string.digits
# Llama 3's models may put it before a call; it belongs to none.
_PYTHON_TAG = "<|python_tag|>"
# Longer, what stands before the arguments names no function.
_MAX_HEAD = 256
_OBJECT_HEAD = re.compile(r'\{\s*+"name"\s*+:\s*+"([^"\\]++)"\s*+,\s*+"(?:arguments|parameters)"\s*+:\s*+\{')
# Some models write an id between the name and the arguments.
_NAMED_HEAD = re.compile(r"\s*+([^\s\[\]{}](?:[^\[\]{}]*[^\s\[\]{}])?)\s*+(?:\[CALL_ID\]\s*+\w++\s*+)?\[ARGS\]\s*+")
_CLOSERS = {"{": "}", "[": "]"}


@dataclass(frozen=True)
class Content:
    """A part of the answer's text."""

    text: str


@dataclass(frozen=True)
class Call:
    """A part of the call number `index`: first its id and its name, then its arguments piece by piece."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


Delta = Content | Call


@dataclass(frozen=True)
class CallFormat:
    """How models write a call: an opening, the call in its layout, the closing.

    - object: `{"name": "f", "arguments": {…}}`, the latter under `key`; several calls have an opening each
    - list: the same objects in one JSON list
    - named: `f[ARGS]{…}`

    Of several spellings of the opening the first is the right one. A bare call has none.
    """

    layout: Literal["object", "list", "named"] = "object"
    openings: tuple[str, ...] = ()
    closing: str = ""
    key: str = "arguments"

    @property
    def bare(self) -> bool:
        """Whether a call begins with nothing but itself."""
        return not self.openings


class AnswerReader:
    """Tells an answer's text and its calls apart.

    What begins as a call and proves to be none is text. A call that is cut off with the answer is given out as far as
    it came once it has named its function, and is nothing before that: what marks a call is never text. With `whole` a
    call is given out once it is complete or cut off; without, its arguments are given out as they come. How the answer
    is cut into pieces makes no difference to what is read.
    """

    def __init__(self, form: CallFormat, names: frozenset[str], *, whole: bool) -> None:
        self._form = form
        self._names = names
        self._whole = whole
        bare = (_PYTHON_TAG, *(f'{{"name":{space}"{name}"' for name in names for space in (" ", "")))
        self._openings = frozenset(form.openings or bare)
        self._beginnings = {word[:size] for word in self._openings for size in range(1, len(word) + 1)}
        self._out = _Output()
        self._take = self._in_text
        # What may be the beginning of an opening, or of a closing.
        self._held = ""
        self._call = _Scanner("")
        self._calls = 0

    def feed(self, text: str) -> list[Delta]:
        """What is certain with `text`."""
        for char in text:
            self._take(char)
        return self._out.taken()

    def finish(self, *, cut: bool = False) -> list[Delta]:
        """The rest, once no more will come; `cut` says that the model would have gone on."""
        if self._take == self._in_call:
            self._cut_off()
        # What may be the beginning of an opening is none where the model has ended there.
        elif self._take == self._in_text and not (cut and (len(self._held) > 1 or self._calls)):
            self._out.say(self._held)
        if not self._calls:
            self._out.say_spaces()
        return self._out.taken()

    def _cut_off(self) -> None:
        """The answer ends within a call."""
        call = self._call
        if call.told:
            self._calls += 1
        elif call.name is not None:
            self._out.call(self._calls, call.name)
            self._out.argue(self._calls, "".join(call.arguments))
            self._calls += 1
        elif self._form.bare and not self._may_be_opening(call.text().lstrip()):
            # JSON that names no function may be what the model was asked for.
            self._out.say(call.text())

    def _may_be_opening(self, text: str) -> bool:
        return any(text.startswith(one) or (one.startswith(text) and len(text) > 1) for one in self._openings)

    def _in_text(self, char: str) -> None:
        self._held += char
        while self._held and self._held not in self._beginnings:
            self._out.say(self._held[0])
            self._held = self._held[1:]
        at_start = self._form.bare and self._held == "{" and not self._out.has_text and not self._calls
        if self._held in self._openings or at_start:
            word, self._held = self._held, ""
            self._take = self._in_call
            # A bare call's opening is its own first part.
            belongs = self._form.bare and word != _PYTHON_TAG
            self._call = _Scanner("" if belongs else word)
            for one in word if belongs else "":
                self._in_call(one)

    def _in_call(self, char: str) -> None:
        call = self._call
        call.raw.append(char)
        if not call.depth and not self._may_begin(char):
            return
        try:
            call.follow(char)
        except ValueError:
            self._give_up()
            return
        if call.name is None and char == "{":
            self._find_name()
        if call.inside:
            call.arguments.append(char)
            if call.told:
                self._out.argue(self._calls, char)
            call.inside = call.depth >= call.base
        if not call.depth:
            self._complete()

    def _may_begin(self, char: str) -> bool:
        """Whether a call's JSON begins with this character, the first that is not part of anything else."""
        call = self._call
        if char == "{":
            return True
        if self._form.layout == "named" and len(call.raw) < _MAX_HEAD:
            return False
        if self._form.layout == "list" and char == "[" and not call.listed:
            call.listed = True
            return False
        if not char.isspace():
            self._give_up()
        return False

    def _find_name(self) -> None:
        """Look for the name where the arguments may just have begun."""
        call = self._call
        if self._form.layout == "named":
            # Only where the first bracket opens: what stands before it is short then, and is looked at once.
            head = _NAMED_HEAD.fullmatch("".join(call.raw[call.skipped : -1])) if call.depth == 1 else None
        else:
            head = _OBJECT_HEAD.fullmatch("".join(call.json)) if call.depth == 2 and not call.nested else None
            call.nested = call.nested or call.depth == 2
        if head is None or head[1] not in self._names:
            return
        name = head[1]
        call.name, call.inside, call.base = name, True, call.depth
        if not self._whole:
            call.told = True
            self._out.call(self._calls, name)

    def _complete(self) -> None:
        call = self._call
        if not call.told:
            found = self._understood()
            if found is None:
                self._give_up()
                return
            self._out.call(self._calls, found[0])
            self._out.argue(self._calls, found[1])
        self._calls += 1
        self._held = ""
        self._take = self._behind_call if self._form.closing or self._form.layout == "list" else self._in_text

    def _understood(self) -> tuple[str, str] | None:
        """The name and the arguments of a whole call; None where it is none."""
        call = self._call
        try:
            found: Any = json.loads("".join(call.json))
            if call.name is not None:
                return call.name, "".join(call.arguments)
            name, arguments = found.get("name"), found.get("arguments", found.get("parameters", {}))
            # Some models write the arguments as JSON within JSON.
            if isinstance(arguments, str):
                json.loads(arguments)
            else:
                arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
        except (ValueError, RecursionError):
            return None
        known = self._form.layout != "named" and isinstance(name, str) and name in self._names
        return (name, arguments) if known else None

    def _give_up(self) -> None:
        """It was no call: what has come of it is text. What has been told of a call stays told."""
        if self._call.told:
            self._calls += 1
        else:
            self._out.say(self._call.text())
        self._held = ""
        self._take = self._in_text

    def _behind_call(self, char: str) -> None:
        if char.isspace() and not self._held:
            return
        self._held += char
        if self._form.layout == "list" and self._held == ",":
            self._call = _Scanner("", listed=True)
            self._take = self._in_call
            return
        closing = self._form.closing or "]"
        if closing.startswith(self._held) and self._held != closing:
            return
        rest = "" if self._held == closing else self._held
        self._held = ""
        self._take = self._in_text
        for one in rest:
            self._take(one)


class _Scanner:
    """Follows the JSON of one call to its end. `raw` is all of the call's text, `json` the object in it."""

    def __init__(self, opening: str, *, listed: bool = False) -> None:
        self.raw = [opening]
        self.skipped = 1
        self.json: list[str] = []
        self.listed = listed
        self.name: str | None = None
        self.arguments: list[str] = []
        # Whether the arguments are being written, and how deep they lie.
        self.inside = False
        self.base = 0
        # Whether another object has begun in this one.
        self.nested = False
        # Whether the name has been given out.
        self.told = False
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False

    @property
    def depth(self) -> int:
        """How many brackets are open."""
        return len(self._open)

    def text(self) -> str:
        """All that has come of it."""
        return "".join(self.raw)

    def follow(self, char: str) -> None:
        """Take one more character. Raises ValueError where brackets do not fit."""
        self.json.append(char)
        if self._in_string:
            if not self._escaped and char == '"':
                self._in_string = False
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._in_string = True
        elif char in _CLOSERS:
            self._open.append(_CLOSERS[char])
        elif char in "]}" and self._open.pop() != char:
            raise ValueError


class _Output:
    """Deltas on their way out; neighbours become one."""

    def __init__(self) -> None:
        self.has_text = False
        self._deltas: list[Delta] = []
        self._index: int | None = None
        self._parts: list[str] = []
        self._spaces: list[str] = []

    def say(self, text: str) -> None:
        """Text; white space waits for what comes next."""
        for char in text:
            if char.isspace():
                self._spaces.append(char)
            else:
                self.has_text = True
                self._put(None, *self._spaces, char)
                self._spaces.clear()

    def say_spaces(self) -> None:
        """The white space at the end of an answer."""
        self._put(None, *self._spaces)
        self._spaces.clear()

    def call(self, index: int, name: str) -> None:
        """A call's beginning. White space before it belongs to nothing."""
        self._spaces.clear()
        self._flush()
        id_ = "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24))
        self._deltas.append(Call(index, id=id_, name=name))

    def argue(self, index: int, arguments: str) -> None:
        """A part of a call's arguments."""
        self._put(index, arguments)

    def _put(self, index: int | None, *texts: str) -> None:
        if index != self._index:
            self._flush()
            self._index = index
        self._parts += texts

    def _flush(self) -> None:
        text = "".join(self._parts)
        self._parts = []
        if text:
            self._deltas.append(Content(text) if self._index is None else Call(self._index, text))

    def taken(self) -> list[Delta]:
        """All deltas since the last time."""
        self._flush()
        taken, self._deltas = self._deltas, []
        return taken
