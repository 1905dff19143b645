"""Parts of a JSON schema: looking them up, and putting two together as one that allows what both do."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from .. import budget
from ..generation import WrongGrammar

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
COMBINED = {"anyOf", "oneOf", "allOf"}
HELD = {"type", "enum", "const"}.union(COMBINED, *_HINTS.values())


class NothingFits(WrongGrammar):
    """The part allows nothing at all; a choice that has others does without it."""


class Parts:
    """The parts of one whole schema, found by reference."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema

    def target(self, reference: Any) -> Any:
        """What a `$ref` points to. Raises WrongGrammar where that is nothing of this schema."""
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            shown = f"'{reference[:80]}'" if isinstance(reference, str) else "of another kind than a text"
            raise WrongGrammar(f"$ref {shown}: only places within the schema itself, as #/$defs/name")
        budget.spend(1 + len(reference) // 16)
        found: Any = self._schema
        for part in unquote(reference).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                raise WrongGrammar(f"$ref '{reference[:80]}' points nowhere")
        return found

    def merge(self, one: Any, other: Any) -> Any:
        """A schema for what both allow. Raises WrongGrammar, NothingFits where there is nothing."""
        budget.spend(1 + (len(one) if isinstance(one, dict) else 0) + (len(other) if isinstance(other, dict) else 0))
        if one is False or other is False:
            return False
        # What only describes leaves the other as it is, and a reference a reference.
        if one is True or (isinstance(one, dict) and says_nothing(one)):
            return other
        if other is True or (isinstance(other, dict) and says_nothing(other)):
            return one
        if not isinstance(one, dict) or not isinstance(other, dict):
            raise WrongGrammar("a schema is an object, true or false")
        if "$ref" in one:
            return self.merge(self.merge(self.target(one["$ref"]), less(one, "$ref")), other)
        if "$ref" in other:
            return self.merge(one, self.merge(self.target(other["$ref"]), less(other, "$ref")))
        merged, later = {**other, **one}, []
        for key in one.keys() & other.keys():
            if one[key] == other[key]:
                continue
            if key in ("anyOf", "oneOf"):
                later.append({key: other[key]})
            else:
                merged[key] = self._merge_key(key, one, other)
        return {**merged, "allOf": [*list_of(merged, "allOf"), *later]} if later else merged

    def _merge_key(self, key: str, one: dict[str, Any], other: dict[str, Any]) -> Any:
        mine, theirs = one[key], other[key]
        both: Any = theirs
        match key:
            case "properties":
                own, others = object_of(one, key), object_of(other, key)
                both = {name: self.merge(own.get(name, True), others.get(name, True)) for name in {**own, **others}}
            case "required" | "allOf":
                both = [*list_of(one, key), *list_of(other, key)]
                budget.spend(len(both))
            case "type":
                both = [kind for kind in kinds_of(one) if kind in kinds_of(other)]
            case "enum":
                budget.spend(len(list_of(one, key)) * len(list_of(other, key)))
                both = [value for value in list_of(one, key) if value in list_of(other, key)]
            case "additionalProperties" | "items":
                both = self.merge(mine, theirs)
            case "pattern" | "const" | "prefixItems":
                both = []
            case _ if key in _LEAST | _MOST:
                both = (max if key in _LEAST else min)(mine, theirs)
        if both == []:
            raise NothingFits(f"nothing fits what it says twice with {key}")
        return both


def less(schema: dict[str, Any], key: str) -> dict[str, Any]:
    """The schema without one of its keywords."""
    return {name: value for name, value in schema.items() if name != key}


def list_of(schema: dict[str, Any], key: str) -> list[Any]:
    """The list of a keyword, empty without it. Raises WrongGrammar where it is none."""
    found = schema.get(key, [])
    if not isinstance(found, list):
        raise WrongGrammar(f"{key} is a list")
    return found


def object_of(schema: dict[str, Any], key: str) -> dict[str, Any]:
    """The object of a keyword, empty without it. Raises WrongGrammar where it is none."""
    found = schema.get(key, {})
    if not isinstance(found, dict):
        raise WrongGrammar(f"{key} is an object")
    return found


def kinds_of(schema: dict[str, Any]) -> list[str]:
    """The types that a schema names, or else those that its keywords are about. Raises WrongGrammar."""
    given = schema.get("type")
    if given is None:
        return [kind for kind, keys in _HINTS.items() if keys & schema.keys()]
    named = given if isinstance(given, list) else [given]
    if not all(isinstance(one, str) for one in named):
        raise WrongGrammar("type is a name, or a list of names")
    return list(dict.fromkeys(named))


def says_nothing(schema: dict[str, Any]) -> bool:
    """Whether a schema only describes, and allows whatever there is."""
    return not schema.keys() & HELD and "$ref" not in schema


def is_a(value: Any, kind: str) -> bool:
    """Whether a value is of this type of JSON Schema's."""
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _PYTHON.get(kind, ()))
