"""JSON Schema as GBNF: a grammar for the JSON texts that a schema allows.

Held to: type, properties, required, additionalProperties, items, prefixItems, minItems, maxItems, minLength,
maxLength, pattern, format (dates, times, uuid), minimum and maximum of integers, the sign of numbers, enum, const,
anyOf, oneOf (as anyOf), allOf, and references within the schema. Other keywords are passed over: what they ask
for no grammar can hold, or only at a price. So are lengths beside a pattern or a format, and upper limits above 2000.
An object with `properties` has these alone unless the schema says more, in the schema's order; `prefixItems` are all
there.

Source: JSON Schema 2020-12, "Validation", and what older drafts wrote otherwise.
"""

from __future__ import annotations

import json
import math
from functools import reduce
from itertools import takewhile
from typing import Any
from urllib.parse import unquote

from . import budget, gbnf, integers, pattern
from .generation import WrongGrammar

MAX_SCHEMAS = 4000
MAX_DEPTH = 64
MAX_NAME = 256
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
# What a schema without a type is about.
_HINTS = {
    "object": {"properties", "required", "additionalProperties", "patternProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
_PYTHON = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "number": (int, float)}
_LEAST = {"minLength", "minItems", "minimum", "exclusiveMinimum"}
_MOST = {"maxLength", "maxItems", "maximum", "exclusiveMaximum"}
_HELD = {"type", "enum", "const", "anyOf", "oneOf", "allOf"}.union(*_HINTS.values())


def grammar(schema: dict[str, Any]) -> str:
    """A grammar for the JSON that `schema` allows. Raises WrongGrammar, budget.BudgetSpent."""
    with budget.limited():
        return _Converter(schema).convert()


class _Converter:
    """Turns each part of a schema into a rule, and gives the same rule to parts that read the same."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._seen = 0
        self._characters = 0

    def convert(self) -> str:
        self._rules["root"] = self._visit(self._schema, 0)
        return "\n".join(f"{name} ::= {body}" for name, body in {**self._rules, **_COMMON}.items())

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
            raise WrongGrammar("nothing fits what it allows: an empty list, or values of another type")
        return different[0] if len(different) == 1 else self._define(" | ".join(different))

    def _visit(self, schema: Any, depth: int) -> str:
        """The name of the rule for `schema`."""
        budget.spend()
        self._seen += 1
        if self._seen > MAX_SCHEMAS or depth > MAX_DEPTH:
            raise WrongGrammar(f"it is larger than {MAX_SCHEMAS} parts, or deeper than {MAX_DEPTH}")
        if schema is True:
            return "value"
        if not isinstance(schema, dict):
            raise WrongGrammar("a schema is an object or true")
        if "$ref" in schema:
            return self._visit_reference(schema, depth)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                base = _less(schema, key)
                options = [self._merge(base, option) for option in _list_of(schema, key)]
                return self._any_of([self._visit(option, depth + 1) for option in options])
        if "allOf" in schema:
            merged = reduce(self._merge, _list_of(schema, "allOf"), _less(schema, "allOf"))
            return self._visit(merged, depth + 1)
        kinds = _kinds(schema)
        if "const" in schema or "enum" in schema:
            values = [schema["const"]] if "const" in schema else _list_of(schema, "enum")
            allowed = [value for value in values if not kinds or any(_is_a(value, kind) for kind in kinds)]
            plain = [value for value in allowed if not isinstance(value, (dict, list))]
            choices = [self._value(value) for value in allowed if isinstance(value, (dict, list))]
            return self._any_of([*self._one_of({_json(value) for value in plain}), *choices])
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
        raise WrongGrammar(f"there is no type {kind!r}")

    def _value(self, value: Any) -> str:
        """The one JSON value, however it is spaced."""
        budget.spend()
        if isinstance(value, dict):
            pairs = [f'{_text(name)} ":" ws {self._value(one)}' for name, one in value.items()]
            return self._define(_between('"{"', pairs, '"}"'))
        if isinstance(value, list):
            return self._define(_between('"["', [self._value(one) for one in value], '"]"'))
        return self._define(_text(value))

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

    def _visit_reference(self, schema: dict[str, Any], depth: int) -> str:
        reference = schema["$ref"]
        if schema.keys() & _HELD:
            return self._visit(self._merge(self._target(reference), _less(schema, "$ref")), depth + 1)
        target = self._target(reference)
        if reference not in self._references:
            # Known before its rule is: a schema may contain itself.
            self._references[reference] = name = f"ref{len(self._references)}"
            self._rules[name] = self._visit(target, depth + 1)
        return self._references[reference]

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise WrongGrammar(f"$ref {str(reference)[:80]!r}: only places within the schema itself, as #/$defs/name")
        budget.spend(1 + len(reference) // 16)
        found: Any = self._schema
        for part in unquote(reference).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                raise WrongGrammar(f"$ref {reference[:80]!r} points nowhere")
        return found

    def _merge(self, one: Any, other: Any) -> Any:
        """A schema for what both allow."""
        budget.spend(1 + (len(one) if isinstance(one, dict) else 0) + (len(other) if isinstance(other, dict) else 0))
        if one is True or other is True:
            return other if one is True else one
        if not isinstance(one, dict) or not isinstance(other, dict):
            raise WrongGrammar("a schema is an object or true")
        if "$ref" in one:
            return self._merge(self._merge(self._target(one["$ref"]), _less(one, "$ref")), other)
        if "$ref" in other:
            return self._merge(one, self._merge(self._target(other["$ref"]), _less(other, "$ref")))
        merged, later = {**other, **one}, []
        for key in one.keys() & other.keys():
            if one[key] == other[key]:
                continue
            if key in ("anyOf", "oneOf"):
                later.append({key: other[key]})
            else:
                merged[key] = self._merge_key(key, one, other)
        return {**merged, "allOf": [*_list_of(merged, "allOf"), *later]} if later else merged

    def _merge_key(self, key: str, one: dict[str, Any], other: dict[str, Any]) -> Any:
        mine, theirs = one[key], other[key]
        both: Any = theirs
        match key:
            case "properties":
                own, others = _object_of(one, key), _object_of(other, key)
                both = {name: self._merge(own.get(name, True), others.get(name, True)) for name in {**own, **others}}
            case "required" | "allOf":
                both = [*_list_of(one, key), *_list_of(other, key)]
                budget.spend(len(both))
            case "type":
                both = [kind for kind in _kinds(one) if kind in _kinds(other)]
            case "enum":
                budget.spend(len(_list_of(one, key)) * len(_list_of(other, key)))
                both = [value for value in _list_of(one, key) if value in _list_of(other, key)]
            case "additionalProperties" | "items":
                both = False if mine is False or theirs is False else self._merge(mine, theirs)
            case "pattern" | "const" | "prefixItems":
                both = []
            case _ if key in _LEAST | _MOST:
                both = (max if key in _LEAST else min)(mine, theirs)
        if both == []:
            raise WrongGrammar(f"nothing fits what it says twice with {key}")
        return both

    # --- objects and arrays

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        properties = _object_of(schema, "properties")
        required = {name: True for name in _list_of(schema, "required") if isinstance(name, str)}
        others = schema.get("additionalProperties", not properties and "properties" not in schema)
        parts = {**properties, **{name: True for name in required if name not in properties}}
        pairs = [(name, f'{_text(name)} ":" ws {self._visit(part, depth)}') for name, part in parts.items()]
        # What may come once something stands before it, from the last to the first.
        another = "" if others is False else self._other(list(parts), others, depth)
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
        if others is not False:
            first.append(f"{another} {behind[-1]}")
        return self._define(f'"{{" ws ({self._any_of(first)} ws)? "}}"' if first else '"{" ws "}"')

    def _other(self, names: list[str], schema: Any, depth: int) -> str:
        """A member of any name but `names`."""
        if not names:
            return self._define(f'string ":" ws {self._visit(schema, depth)}')
        if max(map(len, names)) > MAX_NAME:
            raise WrongGrammar(f"beside additionalProperties a property's name has at most {MAX_NAME} characters")
        return self._define(f'"\\"" {self._none_of(set(names))} "\\"" ":" ws {self._visit(schema, depth)}')

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
            head = _list_of(schema, "prefixItems")
            items = False if head and "items" not in schema else items
        heads = [self._visit(part, depth) for part in head[:most]]
        room = None if most is None else most - len(heads)
        if items is False or room == 0:
            return self._define(_between('"["', heads, '"]"'))
        item = self._visit(items, depth)
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
        if wanted is not None:
            inside = pattern.rule(str(wanted), self._define, "char*")
            return self._define(f'"\\"" ({inside}) "\\""')
        if not least and most is None:
            return "string"
        return self._define(f'"\\"" char{_times(least, most)} "\\""')

    def _integer(self, schema: dict[str, Any]) -> str:
        low, high = _limit(schema, "minimum", "exclusiveMinimum", 1), _limit(schema, "maximum", "exclusiveMaximum", -1)
        if low == -integers.LARGEST and high == integers.LARGEST:
            return "integer"
        if low > high:
            raise WrongGrammar("its minimum is above its maximum")
        return self._define(integers.rule(low, high))


def _less(schema: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != key}


def _list_of(schema: dict[str, Any], key: str) -> list[Any]:
    found = schema.get(key, [])
    if not isinstance(found, list):
        raise WrongGrammar(f"{key} is a list")
    return found


def _object_of(schema: dict[str, Any], key: str) -> dict[str, Any]:
    found = schema.get(key, {})
    if not isinstance(found, dict):
        raise WrongGrammar(f"{key} is an object")
    return found


def _kinds(schema: dict[str, Any]) -> list[str]:
    given = schema.get("type")
    if given is None:
        return [kind for kind, keys in _HINTS.items() if keys & schema.keys()]
    return list(dict.fromkeys(map(str, given))) if isinstance(given, list) else [str(given)]


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _PYTHON.get(kind, ()))


def _text(value: Any) -> str:
    """A literal for `value` as JSON."""
    return gbnf.literal(_json(value))


def _common(first: str, last: str) -> str:
    """What both begin with; in their order all between them begin with it as well."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(char for char, _ in same)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _between(begin: str, parts: list[str], end: str) -> str:
    inside = ' "," ws '.join(parts)
    return f"{begin} ws {inside} ws {end}" if parts else f"{begin} ws {end}"


def _bounds(schema: dict[str, Any], least: str, most: str) -> tuple[int, int | None]:
    low, high = schema.get(least, 0), schema.get(most)
    for key, value in ((least, low), (most, high)):
        if value is not None and not (_is_a(value, "integer") and value >= 0):
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
    if _is_a(value, "number"):
        limits.append(math.ceil(value) if step > 0 else math.floor(value))
    if _is_a(beyond, "number"):
        limits.append((math.floor(beyond) if step > 0 else math.ceil(beyond)) + step)
    limit = max(limits) if step > 0 else min(limits)
    if abs(limit) > integers.LARGEST:
        raise WrongGrammar(f"an integer has at most {integers.DIGITS} digits")
    return limit
