"""JSON Schema as GBNF: a grammar for the JSON texts that a schema allows.

Held to: type, properties, required, additionalProperties, items, prefixItems, minItems, maxItems, minLength,
maxLength, pattern, format (dates, times, uuid), minimum and maximum of integers, the sign of numbers, enum, const,
anyOf, oneOf (as anyOf), allOf, and references within the schema. Other keywords are passed over: what they ask
for no grammar can hold, or only at a price. So are lengths beside a pattern or a format, and upper limits above 2000.
An object with `properties` has these alone unless the schema says more, in the schema's order; `prefixItems` are all
there. A part that allows nothing, as `false` does, is left out where there is another choice. Where it is said so, a
pattern that no grammar can hold is passed over as well.

A reference stays a reference: a rule that names another, which may be itself. What is put together of several parts is
a rule as well, so that one that contains itself is put together once.

Own code: llama-cpp-python's `json_schema_to_gbnf` bounds neither what a schema may cost nor what its grammar may do to
the process, and knows no limits of integers.

Source: JSON Schema 2020-12, "Validation", and what older drafts wrote otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial, reduce
from itertools import takewhile
from typing import Any

from .. import budget
from ..generation import WrongGrammar
from . import gbnf, integers, pattern
from .schema_parts import COMBINED, HELD, NothingFits, Parts, is_a, kinds_of, less, list_of, object_of  # fmt: skip

MAX_SCHEMAS = 4000
MAX_DEPTH = 64
MAX_NAME = 256
# Of more values that are objects or lists, each is spaced in one way alone: then they can be read letter by letter.
MAX_SPACED = 64
# What the rules together may hold: parts that are put together again and again grow without end.
MAX_CHARACTERS = 2_000_000

# White space is bounded: a small model may else go on with nothing but spaces until its limit.
SPACE = r'" "? | "\n" [ \t]{0,20}'
_COMMON = {
    "ws": SPACE,
    "plain": r'[^"\\\x00-\x1F]',
    "char": r'plain | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "integer": r'"-"? natural',
    "natural": rf'"0" | [1-9] [0-9]{{0,{integers.DIGITS - 1}}}',
    "number": '"-"? positive',
    "positive": r'natural ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "object": '"{" ws (member ("," ws member)* ws)? "}"',
    "member": 'string ":" ws value',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
    "value": "object | array | string | number | boolean | null",
}
ANY_OBJECT = "\n".join(f"{name} ::= {body}" for name, body in {"root": "object", **_COMMON}.items())

_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_DATE = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "uuid": "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
}


def grammar(schema: dict[str, Any], *, strict: bool = True) -> str:
    """A grammar for the JSON that `schema` allows. Raises WrongGrammar, budget.BudgetSpent.

    Unless it is `strict`, a pattern that no grammar can hold is passed over; a text may be any there.
    """
    with budget.limited():
        return _Converter(schema, strict=strict).convert()


def converter(*, strict: bool) -> Callable[[dict[str, Any]], str]:
    """`grammar`, as strict as this."""
    return partial(grammar, strict=strict)


class _Converter:
    """Turns each part of a schema into a rule, and gives the same rule to parts that read the same."""

    def __init__(self, schema: dict[str, Any], *, strict: bool = True) -> None:
        self._schema = schema
        self._parts = Parts(schema)
        self._strict = strict
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._references: dict[str, str] = {}
        # Rules that are named already and have yet to be made: a chain of references is not as deep as it is long.
        self._pending: list[tuple[str, Any]] = []
        self._combinations: dict[str, str] = {}
        self._seen = 0
        self._characters = 0

    def convert(self) -> str:
        self._rules["root"] = self._visit(self._schema, 0)
        while self._pending:
            name, target = self._pending.pop()
            self._rules[name] = self._visit(target, 0)
        return _written(self._rules)

    def _define(self, body: str) -> str:
        budget.spend(1 + len(body) // 16)
        if body not in self._names:
            self._characters += len(body)
            if self._characters > MAX_CHARACTERS:
                raise WrongGrammar(f"its grammar becomes larger than {MAX_CHARACTERS} characters")
            self._names[body] = name = f"r{len(self._names)}"
            self._rules[name] = body
        return self._names[body]

    def _any_of(self, choices: list[str]) -> str:
        different = list(dict.fromkeys(choices))
        if not different:
            raise NothingFits("nothing fits what it allows: an empty list, or values of another type")
        return different[0] if len(different) == 1 else self._define(" | ".join(different))

    def _visit(self, schema: Any, depth: int) -> str:
        """The name of the rule for `schema`."""
        budget.spend()
        self._seen += 1
        if self._seen > MAX_SCHEMAS or depth > MAX_DEPTH:
            raise WrongGrammar(f"it is larger than {MAX_SCHEMAS} parts, or deeper than {MAX_DEPTH}")
        if schema is True:
            return "value"
        if schema is False:
            raise NothingFits("nothing fits false")
        if not isinstance(schema, dict):
            raise WrongGrammar("a schema is an object, true or false")
        if "$ref" in schema and not schema.keys() & HELD:
            return self._visit_reference(schema["$ref"])
        if "$ref" in schema or schema.keys() & COMBINED:
            return self._visit_combination(schema, depth)
        kinds = kinds_of(schema)
        if _is_of_values(schema):
            return self._any_value(*_values(schema))
        return self._any_of([self._of_kind(schema, kind, depth + 1) for kind in kinds]) if kinds else "value"

    def _of_kind(self, schema: dict[str, Any], kind: str, depth: int) -> str:
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer":
                return self._integer(schema)
            case "number":
                low = [schema.get(key) for key in ("minimum", "exclusiveMinimum")]
                return "positive" if any(isinstance(one, (int, float)) and one >= 0 for one in low) else "number"
            case "boolean" | "null":
                return kind
        raise WrongGrammar(f"there is no type '{kind[:40]}'")

    def _value(self, value: Any) -> str:
        """The one JSON value, however it is spaced."""
        budget.spend()
        if isinstance(value, dict):
            pairs = [f'{_text(name)} ":" ws {self._value(one)}' for name, one in value.items()]
            return self._define(_between('"{"', pairs, '"}"'))
        if isinstance(value, list):
            return self._define(_between('"["', [self._value(one) for one in value], '"]"'))
        return self._define(_text(value))

    def _any_value(self, plain: set[str], structured: list[Any]) -> str:
        """The name of the rule for any of these values: plain ones as JSON, and objects and lists."""
        if len(structured) > MAX_SPACED:
            plain, structured = plain | {_json(value) for value in structured}, []
        return self._any_of([*self._one_of(plain), *map(self._value, structured)])

    def _one_of(self, texts: set[str]) -> list[str]:
        """One of these texts, each letter looked at once: as so many choices they would all judge every token."""
        budget.spend(1 + sum(map(len, texts)) // 16)
        begins: dict[str, set[str]] = {}
        for text in texts - {""}:
            begins.setdefault(text[0], set()).add(text)
        choices: list[str] = []
        for char in sorted(begins):
            common = _common(min(begins[char]), max(begins[char]))
            rest = {text[len(common) :] for text in begins[char]}
            behind = self._one_of(rest) if len(rest) > 1 else []
            tail = f" ({' | '.join(behind)}){'?' if '' in rest else ''}" if behind else ""
            choices.append(self._define(f"{gbnf.literal(common)}{tail}"))
        return choices

    # --- references and combinations

    def _visit_reference(self, reference: Any) -> str:
        target = self._parts.target(reference)
        if target is False:
            raise NothingFits("nothing fits false")
        if reference not in self._references:
            # Known before its rule is: a schema may contain itself.
            self._references[reference] = name = f"ref{len(self._references)}"
            self._pending.append((name, target))
        return self._references[reference]

    def _visit_combination(self, schema: dict[str, Any], depth: int) -> str:
        """The name of the rule for what is put together of several parts; known before the rule is, as above."""
        key = json.dumps(schema, sort_keys=True)
        budget.spend(1 + len(key) // 64)
        if key not in self._combinations:
            self._combinations[key] = name = f"c{self._seen}"
            try:
                self._rules[name] = self._combine(schema, depth)
            except NothingFits:
                del self._combinations[key]
                raise
        return self._combinations[key]

    def _combine(self, schema: dict[str, Any], depth: int) -> str:
        if "$ref" in schema:
            return self._visit(self._parts.merge(self._parts.target(schema["$ref"]), less(schema, "$ref")), depth + 1)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                with_rest = partial(self._parts.merge, less(schema, key))
                return self._alternatives([partial(with_rest, one) for one in list_of(schema, key)], depth + 1)
        merged = reduce(self._parts.merge, list_of(schema, "allOf"), less(schema, "allOf"))
        return self._visit(merged, depth + 1)

    def _alternatives(self, options: list[Callable[[], Any]], depth: int) -> str:
        """The name of the rule for any of the options that allow something."""
        # Values that stand alone are looked at together, as those of one enum.
        plain: set[str] = set()
        structured: list[Any] = []
        choices: list[str] = []
        for option in options:
            try:
                merged = option()
                if isinstance(merged, dict) and _is_of_values(merged) and not merged.keys() & {*COMBINED, "$ref"}:
                    texts, others = _values(merged)
                    plain |= texts
                    structured += others
                else:
                    choices.append(self._visit(merged, depth))
            except NothingFits:
                continue
        if plain or structured:
            choices.append(self._any_value(plain, structured))
        return self._any_of(choices)

    # --- objects and arrays

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        properties = object_of(schema, "properties")
        required = {name: True for name in list_of(schema, "required") if isinstance(name, str)}
        others = schema.get("additionalProperties", not properties and "properties" not in schema)
        parts = {**properties, **{name: True for name in required if name not in properties}}
        pairs = [
            (name, f'{_text(name)} ":" ws {visited}')
            for name, part in parts.items()
            if (visited := self._visit(part, depth) if name in required else self._where_allowed(part, depth))
        ]
        # What may come once something stands before it, from the last to the first.
        other = self._where_allowed(others, depth)
        another = self._other(list(parts), other) if other else ""
        behind = [f'("," ws {another})*' if another else ""]
        for name, pair in reversed(pairs):
            own = f'"," ws {pair}' if name in required else f'("," ws {pair})?'
            behind.append(self._define(f"{own} {behind[-1]}"))
        behind.reverse()
        first: list[str] = []
        for number, (name, pair) in enumerate(pairs):
            first.append(f"{pair} {behind[number + 1]}")
            if name in required:
                return self._define(f'"{{" ws {self._any_of(first)} ws "}}"')
        if another:
            first.append(f"{another} {behind[-1]}")
        return self._define(f'"{{" ws ({self._any_of(first)} ws)? "}}"' if first else '"{" ws "}"')

    def _where_allowed(self, schema: Any, depth: int) -> str | None:
        """The rule of what need not be there; None where nothing may be."""
        try:
            return self._visit(schema, depth)
        except NothingFits:
            return None

    def _other(self, names: list[str], value: str) -> str:
        """A member of any name but `names`, with what the rule `value` allows."""
        if not names:
            return self._define(f'string ":" ws {value}')
        if max(map(len, names)) > MAX_NAME:
            raise WrongGrammar(f"beside additionalProperties a property's name has at most {MAX_NAME} characters")
        return self._define(f'"\\"" {self._none_of(set(names))} "\\"" ":" ws {value}')

    def _none_of(self, endings: set[str]) -> str:
        """Text that is none of `endings`, without what JSON writes with a backslash."""
        budget.spend(1 + len(endings))
        begins: dict[str, set[str]] = {}
        for ending in endings - {""}:
            begins.setdefault(ending[0], set()).add(ending[1:])
        taken = "".join(gbnf.member(ord(char)) for char in sorted(begins))
        choices = [rf'[^"\\\x00-\x1F{taken}] plain*']
        choices += [
            f"{gbnf.literal(char)} {self._none_of(begins[char])}"
            for char in sorted(begins)
            if char >= " " and char not in '"\\'
        ]
        return self._define(" | ".join(choices) if "" in endings else f"({' | '.join(choices)})?")

    def _array(self, schema: dict[str, Any], depth: int) -> str:
        least, most = _bounds(schema, "minItems", "maxItems")
        items = schema.get("items", True)
        if isinstance(items, list):
            head, items = items, schema.get("additionalItems", False)
        else:
            head = list_of(schema, "prefixItems")
            items = False if head and "items" not in schema and least <= len(head) else items
        if False in head:
            # Nothing may stand there, so the list ends before it.
            most = min(head.index(False), len(head) if most is None else most)
            if least > most:
                raise NothingFits("nothing fits a list that must be longer than it may be")
        heads = [self._visit(part, depth) for part in head[:most]]
        room = None if most is None else most - len(heads)
        item = None if room == 0 else self._where_allowed(items, depth)
        if item is None:
            if least > len(heads):
                raise NothingFits("nothing fits a list that must be longer than it may be")
            return self._define(_between('"["', heads, '"]"'))
        more = self._define(f'"," ws {item}')
        if heads:
            body = ' "," ws '.join(heads) + " " + more + _times(max(least - len(heads), 0), room)
        else:
            body = item + " " + (more + _times(max(least - 1, 0), None if room is None else room - 1))
        return self._define(f'"[" ws {body} ws "]"' if heads or least else f'"[" ws ({body} ws)? "]"')

    # --- texts and numbers

    def _string(self, schema: dict[str, Any]) -> str:
        least, most = _bounds(schema, "minLength", "maxLength")
        wanted = schema.get("pattern", _FORMATS.get(str(schema.get("format"))))
        if wanted is not None and self._can_hold(str(wanted)):
            inside = pattern.rule(str(wanted), self._define, "char*")
            return self._define(f'"\\"" ({inside}) "\\""')
        if not least and most is None:
            return "string"
        return self._define(f'"\\"" char{_times(least, most)} "\\""')

    def _can_hold(self, wanted: str) -> bool:
        """Whether a grammar can hold this pattern by itself. Raises WrongGrammar where it must and cannot."""
        if self._strict:
            return True
        alone = _Converter({})
        try:
            rules = {"root": pattern.rule(wanted, alone._define, "char*"), **alone._rules}
            gbnf.check(_written(rules))
        except WrongGrammar:
            return False
        return True

    def _integer(self, schema: dict[str, Any]) -> str:
        low, high = _limit(schema, "minimum", "exclusiveMinimum", 1), _limit(schema, "maximum", "exclusiveMaximum", -1)
        if low == -integers.LARGEST and high == integers.LARGEST:
            return "integer"
        if low > high:
            raise NothingFits("nothing fits it: its minimum is above its maximum")
        return self._define(integers.rule(low, high))


def _written(rules: dict[str, str]) -> str:
    return "\n".join(f"{name} ::= {body}" for name, body in {**rules, **_COMMON}.items())


def _is_of_values(schema: dict[str, Any]) -> bool:
    """Whether a schema lists what it allows."""
    return "const" in schema or "enum" in schema


def _values(schema: dict[str, Any]) -> tuple[set[str], list[Any]]:
    """The values that a schema lists: the plain ones as JSON, and those that are objects or lists."""
    kinds = kinds_of(schema)
    values = [schema["const"]] if "const" in schema else list_of(schema, "enum")
    allowed = [value for value in values if not kinds or any(is_a(value, kind) for kind in kinds)]
    plain = {_json(value) for value in allowed if not isinstance(value, (dict, list))}
    return plain, [value for value in allowed if isinstance(value, (dict, list))]


def _text(value: Any) -> str:
    """A literal for `value` as JSON."""
    return gbnf.literal(_json(value))


def _common(first: str, last: str) -> str:
    """What both begin with; in their order all between them begin with it as well."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(char for char, _ in same)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise WrongGrammar("it has a number that JSON does not know") from None


def _between(begin: str, parts: list[str], end: str) -> str:
    inside = ' "," ws '.join(parts)
    return f"{begin} ws {inside} ws {end}" if parts else f"{begin} ws {end}"


def _bounds(schema: dict[str, Any], least: str, most: str) -> tuple[int, int | None]:
    low, high = schema.get(least, 0), schema.get(most)
    for key, value in ((least, low), (most, high)):
        if value is not None and not (is_a(value, "integer") and value >= 0):
            raise WrongGrammar(f"{key} is a whole number")
    if high is not None and high < low:
        raise WrongGrammar(f"{least} is above {most}")
    return int(low), None if high is None else int(high)


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _limit(schema: dict[str, Any], inclusive: str, exclusive: str, step: int) -> int:
    """The smallest integer for step 1, the largest for step -1."""
    limits = [-step * integers.LARGEST]
    value: Any = schema.get(inclusive)
    beyond: Any = schema.get(exclusive)
    # Draft 4 says with a boolean that the limit itself is excluded.
    if beyond is True:
        value, beyond = None, value
    if not all(math.isfinite(one) for one in (value, beyond) if is_a(one, "number")):
        raise WrongGrammar("it has a number that JSON does not know")
    if is_a(value, "number"):
        limits.append(math.ceil(value) if step > 0 else math.floor(value))
    if is_a(beyond, "number"):
        limits.append((math.floor(beyond) if step > 0 else math.ceil(beyond)) + step)
    limit = max(limits) if step > 0 else min(limits)
    if abs(limit) > integers.LARGEST:
        raise WrongGrammar(f"an integer has at most {integers.DIGITS} digits")
    return limit
