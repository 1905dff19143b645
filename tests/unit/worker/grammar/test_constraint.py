"""Grammars: what llama.cpp makes of those that we write, and which ones never reach it."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Literal, Optional

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, create_model

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import ChatRequest, CompletionRequest
from llama_orch.worker.generation import WrongGrammar
from llama_orch.worker.grammar import gbnf, json_schema, schema_parts
from llama_orch.worker.grammar.constraint import constraint_of, grammar_of
from tests.unit.worker.grammars import Grammar, accepts, taken


def holds(schema: dict[str, Any], text: str) -> bool:
    return accepts(grammar_of(schema, "schema"), text)


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


# --- requests


def request(**more: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "x", **more})


def test_nothing_is_asked_for():
    assert constraint_of(request()) is None
    assert constraint_of(request(response_format={"type": "text"})) is None


def test_json_object_allows_any_object_and_nothing_else():
    constraint = constraint_of(request(response_format={"type": "json_object"}))
    assert constraint is not None and constraint.after == ()
    for text in ("{}", '{"a": [1, -2.5e3, "\\u00e4\\n", null, true, {"b": {}}]}', '{\n    "a": 1\n}'):
        assert accepts(constraint.grammar, text), text
    for text in ("[]", '"a"', '{"a": "line\nbreak"}', '{"a": 1}' + " " * 9, "{" + " " * 99 + "}", "{,}", '{"a": 01}'):
        assert not accepts(constraint.grammar, text), text


def test_a_schema_becomes_a_grammar():
    schema = an_object(answer={"type": "integer"})
    body = {"messages": [{"role": "user", "content": "x"}]}
    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    constraint = constraint_of(ChatRequest.model_validate(body | {"response_format": response_format}))
    assert constraint is not None
    assert accepts(constraint.grammar, '{"answer": 42}') and not accepts(constraint.grammar, '{"answer": "42"}')


def test_a_grammar_is_taken_as_it_is():
    constraint = constraint_of(request(grammar='root ::= "yes" | "no"'))
    assert constraint is not None and constraint.grammar == 'root ::= "yes" | "no"'


def test_a_wrong_grammar_is_a_400_that_names_the_field():
    with pytest.raises(BadRequest, match="grammar: ") as caught:
        constraint_of(request(grammar="root ::= nothing"))
    assert caught.value.error_code == "wrong_grammar"


@pytest.mark.parametrize("error", [WrongGrammar("too odd"), ValueError("odd"), RecursionError(), KeyError("x")])
def test_whatever_a_converter_raises_is_a_400_that_names_the_field(error: Exception):
    def convert(schema: dict[str, Any]) -> str:
        raise error

    response_format = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
    with pytest.raises(BadRequest, match=r"^response_format\.json_schema\.schema: ") as caught:
        constraint_of(request(response_format=response_format), convert)
    assert caught.value.error_code == "schema_unsupported"


def test_what_a_converter_makes_is_checked_too():
    with pytest.raises(BadRequest, match="schema_field: "):
        grammar_of({}, "schema_field", lambda _: "root ::= root")


# --- GBNF


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_a_literal_is_the_text_itself(text: str):
    # A first letter, as some vocabularies add a space to a text that has none.
    grammar = f"root ::= {gbnf.literal('x' + text)}"
    gbnf.check(grammar)
    assert accepts(grammar, "x" + text)


def test_a_prefix_changes_the_rules_names_and_nothing_else():
    grammar = 'root ::= a-1 "a-1" [a-1] # a-1\na-1 ::= ( root | "x" )? "\\"root"'
    renamed = gbnf.prefixed(grammar, "p-")
    assert renamed == 'p-root ::= p-a-1 "a-1" [a-1] # a-1\np-a-1 ::= ( p-root | "x" )? "\\"root"'


def test_a_name_and_a_line_of_noise_are_read_once():
    """A look ahead over what may be a comment tried every way to cut it up: at 30 characters it took minutes."""
    for noise in ("#" * 60_000, " " * 60_000, "a#" * 30_000, "-" * 60_000):
        with pytest.raises(WrongGrammar):
            gbnf.check(f"root ::= a {noise}\nb{noise}")


DOUBLING = "".join(f"r{number} ::= r{number + 1} | r{number + 1}\n" for number in range(40)) + 'r40 ::= "a"'
STACKS = "".join(f'r{number} ::= r{number + 1} "x" | r{number + 1} "y"\n' for number in range(30)) + 'r30 ::= "a"'


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", "no rule named root"),
        ('a ::= "x"', "no rule named root"),
        ("root ::= nothing", "'nothing' is used but not defined"),
        ('root ::= "x', "begins with"),
        ("root = x", "begins with"),
        ('root ::= "a" )', "begins with its name"),
        ('root ::= ( "a"', "ends with"),
        ("root ::= *", "nothing that it could repeat"),
        ('root ::= "" *', "nothing that it could repeat"),
        ('root ::= "a"{3,2}', "the smaller number first"),
        ('root ::= "a"{x}', "no repetition"),
        ('root ::= "a"{2001}', "at most 2000"),
        ('root ::= "a"\nroot ::= "b"', "twice"),
        ('root ::= "a\0"', "character"),
        ('root ::= "\ud800"', "character"),
        # Each of these makes llama.cpp end the process, or never come back.
        ("root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000, "nested"),
        ('root ::= a root "x" | "y"\na ::= b\nb ::= ""', "'root' may begin with itself"),
        ('root ::= ("a"? root)?', "may begin with itself"),
        ("root ::= r0\n" + DOUBLING, "ways to begin"),
        ("root ::= r0\n" + STACKS, "ways to begin"),
        ('root ::= "b" r0\n' + STACKS, "ways to begin"),
        ('root ::= "' + "a" * 60_000 + '"{2000}', "too large"),
        ('root ::= ("a"?){2000}', "ways to"),
        ("root ::= " + " ".join(['"a"?'] * 3000), "ways to"),
    ],
)
def test_what_would_harm_llama_cpp_never_reaches_it(grammar: str, reason: str):
    with pytest.raises(WrongGrammar, match=reason):
        gbnf.check(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a" | [b-d]+ # a comment with "quotes" and (\n',
        "root ::= item{2,5} end\nitem ::=\n  [^x\\]] | . | \n  ( \"a\" | 'b'? )".replace("'", '"') + '\nend ::= ""',
        'root ::= "(" root ")" | [0-9]{1,} ("." [0-9]{2})?',
        'root ::= (("a" | "b") ("c"{0,500} | "d"))* ""',
        "root ::= <[1]> !<[2]>",
    ],
)
def test_a_harmless_grammar_passes(grammar: str):
    gbnf.check(grammar)
    assert taken(grammar)


# --- JSON schemas

TREE = {
    "$defs": {
        "tree_node": an_object(
            value={"type": "integer"}, kids={"type": "array", "items": {"$ref": "#/$defs/tree_node"}}
        )
    },
    "$ref": "#/$defs/tree_node",
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}, "note": {}},
    "required": ["name"],
}


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        ({}, ["1", '"x"', "[{}]", "null"], ["x"]),
        ({"description": "no more than this"}, ["1", "{}"], []),
        (an_object(a=an_object(b={"type": "string"})), ['{"a":{"b":"x"}}', '{"a": {"b": ""}}'], ['{"a": {}}', "{}"]),
        (PERSON, ['{"name": "A"}', '{"name": "A", "note": [1]}', '{"name": "A", "age": 5, "note": 1}'],
         ['{"age": 5}', '{"name": "A", "age": -5}', '{"name": "A", "other": 1}', '{"name": "A",}']),
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
         ["{}", '{"a": 1}', '{"b": 1}', '{"a": 1, "b": 2}'], ['{, "b": 1}', '{"c": 1}']),
        ({"type": "object", "properties": {}}, ["{}"], ['{"a": 1}']),
        ({"type": "object"}, ["{}", '{"a": 1}'], ["[]"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"a": 1, "b": 2}'], ['{"a": "x"}']),
        ({**PERSON, "additionalProperties": {"type": "boolean"}},
         ['{"name": "A", "x": true}', '{"name": "A", "names": true, "nam": false, "": true}'],
         ['{"name": "A", "x": 1}', '{"name": "A", "age": true}', '{"name": "A", "name": true}']),
        ({"required": ["x"]}, ['{"x": 1}'], ["{}"]),
        (an_object(**{'a"b\\c\n': {"type": "integer"}}), ['{"a\\"b\\\\c\\n": 1}'], ["{}"]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
         ["[1, 2]", "[1,2,3]", "[\n  1,\n  2\n]"], ["[]", "[1]", "[1,2,3,4]", '["a", 1]']),
        ({"type": "array"}, ["[]", '[1, "a"]'], ["{}"]),
        ({"type": "array", "items": {}, "maxItems": 1}, ["[]", "[{}]"], ["[1,2]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"type": "array", "items": True, "minItems": 1}, ["[1]", "[1,2]"], ["[]"]),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, ['[1, "a"]'],
         ["[1]", '[1,"a",2]']),
        ({"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "null"}},
         ["[1]", "[1,null]"], ["[]"]),
        ({"enum": ["a", 'q"u\\o', "ä😀", 1, 2.5, None, True, {"a": [1]}]},
         ['"a"', '"q\\"u\\\\o"', '"ä😀"', "1", "2.5", "null", "true", '{"a": [1]}', '{"a":[1]}'],
         ['"b"', "2", "false"]),
        ({"type": ["string", "null"], "enum": ["a", None, 5]}, ['"a"', "null"], ['"b"', "5"]),
        ({"const": "x"}, ['"x"'], ['"y"']),
        ({"type": ["object", "null"], "properties": {"a": {"type": "integer"}}, "required": ["a"]},
         ["null", '{"a": 1}'], ["{}", '{"b": 1}']),
        ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]}, ["1", '"ab"'], ['"abc"', "null"]),
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
          "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a": 1}', '{"b": 1}'], ["{}"]),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "oneOf": [{"required": ["c"]}]},
         ['{"a":1,"c":1}'], ['{"a":1}']),
        ({"allOf": [an_object(a={"type": "integer"}), {"$ref": "#/$defs/b"}],
          "$defs": {"b": an_object(b={"type": "null"})}},
         ['{"a": 1, "b": null}'], ['{"a": 1}']),
        ({"allOf": [{"type": "string"}, {"minLength": 2}]}, ['"ab"'], ['"a"', "{}"]),
        (TREE, ['{"value":1,"kids":[{"value":2,"kids":[]}]}'], ['{"value":1,"kids":[2]}']),
        ({"type": "object", "properties": {"next": {"$ref": "#", "description": "more"}}},
         ['{"next": {"next": {}}}'], ['{"next": 1}']),
        ({"$defs": {"string": {"type": "integer"}, "a/b~c %": {"type": "null"}},
          **an_object(a={"type": "string"}, b={"$ref": "#/$defs/string"}, c={"$ref": "#/$defs/a~1b~0c%20%25"})},
         ['{"a": "x", "b": 1, "c": null}'], ['{"a": "x", "b": "y", "c": null}']),
        ({"type": "string", "minLength": 2, "maxLength": 3},
         ['"ab"', '"abc"', '"\\n\\u00e4"'], ['"a"', '"abcd"', '"a\nb"']),
        ({"type": "string", "maxLength": 1500}, ['""', json.dumps("x" * 1500)], [json.dumps("x" * 1501)]),
        ({"type": "string", "format": "date-time"}, ['"2026-01-31T23:59:59.5+02:00"', '"2026-01-31T00:00:00Z"'],
         ['"2026-13-01T00:00:00Z"', '"2026-01-01"']),
        ({"type": "string", "format": "date"}, ['"2026-01-31"'], ['"2026-1-31"', '"x"']),
        ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123"']),
        ({"type": "string", "format": "anything else"}, ['"x"'], ["1"]),
        ({"type": "integer", "minimum": 7, "maximum": 1203},
         ["7", "9", "10", "99", "1000", "1203"], ["6", "1204", "007", "-7"]),
        ({"type": "integer", "exclusiveMinimum": -12, "maximum": 0}, ["-11", "-1", "0"], ["-12", "1", "-0"]),
        ({"type": "integer", "minimum": 1}, ["1", "9007199254740993"], ["0", "-1", "1.5"]),
        ({"type": "integer", "maximum": 9.5}, ["9", "-100"], ["10"]),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, ["1"], ["0"]),
        ({"type": "number", "minimum": 0}, ["0", "1.5"], ["-1"]),
        ({"type": "number"}, ["-1.5e-7", "0.25"], ["1.", ".5", "+1", "0" * 2, "9" * 30]),
    ],
)  # fmt: skip
def test_a_schema_holds_the_answer(schema: dict[str, Any], allowed: list[str], refused: list[str]):
    for text in allowed:
        assert holds(schema, text), text
    for text in refused:
        assert not holds(schema, text), text


def test_many_values_are_few_choices_at_each_place():
    values = [f"value {number}" for number in range(5000)] + ["", "va", "value 10 and more"]
    grammar = grammar_of({"enum": [*values, *range(-2000, 2000), None, True, 0.5]}, "schema")
    for text in (
        '"value 4999"',
        '"value 1"',
        '""',
        '"va"',
        '"value 10"',
        '"value 10 and more"',
        "7",
        "-1999",
        "0.5",
        "null",
    ):
        assert accepts(grammar, text), text
    for text in ('"value"', '"v', '"value 5000"', '"value 10 and"', "2000", "0.", "-", "nul"):
        assert not accepts(grammar, text), text


def test_many_values_are_few_choices_however_they_are_listed():
    listed = [{"const": f"value {number}", "title": "x"} for number in range(1000)]
    for key in ("anyOf", "oneOf"):
        grammar = grammar_of({"type": "string", key: [*listed, {"type": "string", "enum": ["more"]}]}, "schema")
        assert all(accepts(grammar, text) for text in ('"value 0"', '"value 999"', '"more"'))
        assert not accepts(grammar, '"value 1000"')
    grammar = grammar_of({"enum": [{"id": [number], "of": None} for number in range(1000)]}, "schema")
    assert accepts(grammar, '{"id": [999], "of": null}') and not accepts(grammar, '{"id": [1000], "of": null}')


class Node(BaseModel):
    value: int
    next: Optional[Node] = None  # noqa: UP045  as people write it
    kids: list[Node] = []


class Sum(BaseModel):
    kind: Literal["sum"]
    left: Sum | Leaf
    right: Sum | Leaf


class Leaf(BaseModel):
    kind: Literal["leaf"]
    value: int


def chain(length: int) -> dict[str, Any]:
    """Models each of which has three optional ones of the kind below it."""
    below: type[BaseModel] = create_model("Model0", value=(int, ...))
    for number in range(1, length):
        fields: dict[str, Any] = dict.fromkeys("abc", (below | None, None))
        below = create_model(f"Model{number}", **fields)
    return below.model_json_schema()


BASED = {
    "$defs": {
        "base": an_object(id={"type": "integer"}),
        "node": {
            "allOf": [
                {"$ref": "#/$defs/base"},
                {"properties": {"sub": {"oneOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}},
            ]
        },
    },
    "allOf": [{"$ref": "#/$defs/node"}],
    "description": "a node",
}
CHOSEN = {
    "$defs": {
        "either": {
            "type": "object",
            "anyOf": [{"$ref": "#/$defs/a"}, {"properties": {"k": {"const": "b"}}, "required": ["k"]}],
        },
        "a": {"properties": {"k": {"const": "a"}, "more": {"$ref": "#/$defs/either"}}, "required": ["k"]},
    },
    "$ref": "#/$defs/either",
}


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        (Node.model_json_schema(),
         ['{"value": 1}', '{"value": 1, "next": {"value": 2, "next": null}, "kids": [{"value": 3, "kids": []}]}'],
         ['{"value": 1, "next": {}}', '{"value": 1, "kids": [{"next": null}]}']),
        (Sum.model_json_schema(),
         [json.dumps({"kind": "sum", "left": {"kind": "leaf", "value": 1},
                      "right": {"kind": "sum", "left": {"kind": "leaf", "value": 2},
                                "right": {"kind": "leaf", "value": 3}}})],
         ['{"kind": "sum", "left": {"kind": "leaf"}, "right": {"kind": "leaf", "value": 1}}']),
        (chain(7), ['{"a": {"b": {"c": null}}}', "{}"], ['{"a": {"d": null}}']),
        (chain(60), ['{"a": {"b": {"c": null}}}', "{}"], ['{"a": {"d": null}}']),
        (BASED, ['{"id": 1}', '{"id": 1, "sub": {"id": 2, "sub": null}}'], ['{"sub": null}', '{"id": 1, "sub": {}}']),
        (CHOSEN, ['{"k": "a", "more": {"k": "a", "more": {"k": "b"}}}'], ['{"k": "c"}', '{"k": "a", "more": {}}']),
    ],
)  # fmt: skip
def test_what_contains_itself_or_much_of_the_same_stays_small(
    schema: dict[str, Any], allowed: list[str], refused: list[str]
):
    grammar = grammar_of(schema, "schema")
    assert len(grammar) < 30_000
    for text in allowed:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        assert accepts(grammar, text), text
    for text in refused:
        assert not accepts(grammar, text), text


@pytest.mark.parametrize(
    ("schema", "allowed", "refused"),
    [
        ({"type": "object", "properties": {"a": True, "b": False}, "additionalProperties": True},
         ['{"a": 1, "c": 2}', "{}"], ['{"b": 1}', '{"a": 1, "b": 1}']),
        ({"anyOf": [False, {"type": "integer"}]}, ["1"], ['"x"']),
        ({"type": "string", "anyOf": [{"type": "integer"}, {"maxLength": 2}]}, ['"ab"'], ["1", '"abc"']),
        ({"type": "array", "items": False}, ["[]"], ["[1]"]),
        ({"type": "array", "prefixItems": [{"type": "integer"}, False]}, ["[1]"], ["[]", "[1,2]"]),
        ({"type": "array", "items": {"allOf": [{"type": "string"}, {"type": "null"}]}}, ["[]"], ["[null]", '["x"]']),
        ({"type": "array", "prefixItems": [{"type": "integer"}], "minItems": 2}, ["[1,2]", '[1,"x",2]'], ["[1]"]),
        ({"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"a": False}}]}, ["{}"], ['{"a": 1}']),
    ],
)  # fmt: skip
def test_a_part_that_allows_nothing_is_done_without(schema: dict[str, Any], allowed: list[str], refused: list[str]):
    for text in allowed:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        assert holds(schema, text), text
    for text in refused:
        assert not holds(schema, text), text


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        (r"^\d{4}-[A-F]+$", ["1234-AF"], ["12345-A", "1234-"]),
        (r"ab|^c", ["ab", "xaby", "c", "cx"], ["xc"]),
        (r"^(foo|ba{1,2}r)*$", ["", "foobar", "baarfoo"], ["baaar"]),
        (r"^a.c$", ["abc", 'a"c', "a\\c", "aäc"], ["ac", "a\nc"]),
        (r"^[^a-c\]]$", ["d", '"', "\n"], ["a", "]"]),
        (r"^[\w.+-]+@\w+\.(?:com|org)$", ["a.b+c@d.org"], ["a@b.net"]),
        (r"^\s?\S\/\x41\u{42}$", ["x/AB", " x/AB"], ["/AB"]),
        (r"^a+?b*?$", ["aab"], ["b"]),
        (r"^(?<year>\d)$", ["1"], ["12"]),
        (r"^$", [""], ["x"]),
    ],
)
def test_a_pattern_holds_a_text(pattern: str, allowed: list[str], refused: list[str]):
    schema = {"type": "string", "pattern": pattern}
    for text in allowed:
        assert holds(schema, json.dumps(text, ensure_ascii=False)), text
    for text in refused:
        assert not holds(schema, json.dumps(text, ensure_ascii=False)), text


@pytest.mark.parametrize(
    "pattern",
    ["(?=a)b", "(?!a)b", "(?<=a)b", r"(a)\1", r"\bword", r"\p{L}", "a**", "(", ")", "[", "[b-a]", "[]", "a{3,2}", "\\",
     "a{9999}", "a^b", "a$b", "^(^a)$", "(" * 200 + ")" * 200, r"\u{110000}", "*"],
)  # fmt: skip
def test_a_pattern_that_no_grammar_can_hold_is_refused(pattern: str):
    with pytest.raises(BadRequest, match=r"pattern|repetition|nested"):
        grammar_of({"type": "string", "pattern": pattern}, "schema")
    # It alone is passed over where it need not be kept to.
    schema = an_object(a={"type": "string", "pattern": pattern, "maxLength": 3}, b={"type": "string", "pattern": "^x$"})
    grammar = grammar_of(schema, "schema", json_schema.converter(strict=False))
    assert accepts(grammar, '{"a": "any", "b": "x"}')
    assert not accepts(grammar, '{"a": "any", "b": "y"}') and not accepts(grammar, '{"a": "long", "b": "x"}')


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_patterns_fate_is_the_requests_choice(strict: bool | None):
    wanted = {"schema": an_object(a={"type": "string", "pattern": "(?=a)b"}), "strict": strict}
    body = request(response_format={"type": "json_schema", "json_schema": wanted})
    if strict:
        with pytest.raises(BadRequest, match=r"^response_format\.json_schema\.schema: .*looking ahead"):
            constraint_of(body)
    else:
        constraint = constraint_of(body)
        assert constraint is not None and accepts(constraint.grammar, '{"a": "z"}')


def test_what_is_wrong_with_a_schema_is_told_without_our_names():
    for schema in ({"$ref": "#"}, {"enum": [f"{chr(number)}{number}" for number in range(0x4E00, 0x5200)]}):
        with pytest.raises(BadRequest) as caught:
            grammar_of(schema, "schema")
        assert "rule" not in caught.value.message
    with pytest.raises(BadRequest, match="what is in brackets"):
        constraint_of(request(grammar="root ::= (" + " | ".join(['"a"'] * 2000) + ")"))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def multiplying(depth: int) -> dict[str, Any]:
    """Each pair of definitions holds the pair below it twice, in another order."""
    parts: dict[str, Any] = {"a0": an_object(a={}), "b0": an_object(b={})}
    for number in range(1, depth):
        parts[f"a{number}"] = {"allOf": [{"$ref": f"#/$defs/{one}{number - 1}"} for one in "ab"]}
        parts[f"b{number}"] = {"allOf": [{"$ref": f"#/$defs/{one}{number - 1}"} for one in "ba"]}
    return {"$defs": parts, "$ref": f"#/$defs/a{depth - 1}"}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (multiplying(20), "steps of work"),
        ({"required": [str(number) for number in range(50_000)], "enum": list(range(50_000)),
          "allOf": [{"enum": list(range(1, 50_000))}]}, "steps of work"),
        ({"$ref": "https://example.com/schema.json"}, "within the schema"),
        ({"$ref": "file:///etc/passwd"}, "within the schema"),
        ({"$ref": "#/$defs/gone"}, "points nowhere"),
        ({"$ref": 5}, "within the schema"),
        ({"$ref": "#"}, "itself"),
        ({"$ref": "#", "type": "object"}, "deep|larger"),
        ({"allOf": [{"$ref": "#"}]}, "itself"),
        ({"type": "colour"}, "no type"),
        ({"type": 5}, "is a name"),
        ({"type": ["string", {"a": 1}]}, "is a name"),
        ({"type": "string", "enum": [1]}, "nothing fits"),
        ({"enum": []}, "nothing fits"),
        ({"anyOf": []}, "nothing fits"),
        ({"anyOf": "x"}, "list"),
        ({"properties": ["a"]}, "object"),
        ({"items": 5}, "a schema is an object"),
        ({"prefixItems": [False], "minItems": 1}, "longer than it may be"),
        ({"properties": {"a": False}, "required": ["a"]}, "nothing fits"),
        ({"anyOf": [False, {"type": "string", "enum": [1]}]}, "nothing fits"),
        ({"$defs": {"no": False}, "$ref": "#/$defs/no"}, "nothing fits"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "nothing fits"),
        ({"minItems": -1}, "whole number"),
        ({"minLength": "2"}, "whole number"),
        ({"minLength": 3, "maxLength": 2}, "above"),
        ({"minLength": 5000}, "2000"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "above"),
        ({"type": "integer", "minimum": 10**20}, "digits"),
        ({"type": "integer", "minimum": float("inf")}, "JSON does not know"),
        ({"const": float("nan")}, "JSON does not know"),
        ({"minLength": 1, "allOf": [{"minLength": "x"}]}, "a value of a kind"),
        ({"enum": ["\ud800"]}, "character"),
        (nested(100), "deep"),
        (nested(900), "deep"),
        ({"enum": [f"{chr(number)}{number}" for number in range(0x4E00, 0x5200)]}, "ways"),
        ({"enum": ["a" * number for number in range(4000)]}, "deep|steps"),
        (an_object(**{str(number): {} for number in range(9000)}), "larger"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_held_is_a_400(schema: dict[str, Any], reason: str):
    with pytest.raises(BadRequest, match=f"field: .*({reason})") as caught:
        grammar_of(schema, "field")
    assert caught.value.error_code == "schema_unsupported"


NAMES = st.sampled_from(["a", "b", "ab", 'a"b', "ä", "", "x y", "abc"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | TEXTS | st.floats(-100, 100)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=4
)
PATTERNS = [r"^\d{3}-[A-F]+$", "ab|c", r"^[^a-z\"]{2,4}$", "^(a|bc)*d?$", r"^.\.[\w-]+$", r"\\", '^"$']
KINDS = ["string", "integer", "number", "boolean", "null", "object", "array"]
RANGES = st.tuples(st.integers(-2000, 2000), st.integers(-2000, 2000)).map(sorted)
SIZES = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(sorted)
LEAVES = st.one_of(
    st.just({}),
    VALUES.map(lambda value: {"const": value}),
    st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    st.sampled_from(KINDS).map(lambda kind: {"type": kind}),
    st.just({"type": ["string", "null"]}),
    SIZES.map(lambda sizes: {"type": "string", "minLength": sizes[0], "maxLength": sizes[1]}),
    RANGES.map(lambda limits: {"type": "integer", "minimum": limits[0], "maximum": limits[1]}),
    st.integers(-500, 500).map(lambda limit: {"type": "integer", "exclusiveMaximum": limit}),
    st.sampled_from(PATTERNS).map(lambda pattern: {"type": "string", "pattern": pattern}),
)


def larger(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def objects(properties: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        required = st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([])
        return st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.just(properties), "required": required},
            optional={"additionalProperties": st.booleans() | inner},
        )

    arrays = st.tuples(inner, SIZES).map(
        lambda drawn: {"type": "array", "items": drawn[0], "minItems": drawn[1][0], "maxItems": drawn[1][1]}
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"type": "array", "prefixItems": parts})
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    return st.dictionaries(NAMES, inner, max_size=4).flatmap(objects) | arrays | tuples | unions


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.recursive(LEAVES, larger, max_leaves=8), st.integers(0, 2**32))
def test_whatever_a_grammar_allows_its_schema_allows(schema: dict[str, Any], seed: int):
    with Grammar(grammar_of(schema, "schema")) as grammar:
        text = grammar.write(seed)
    if text is not None:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@settings(max_examples=60, deadline=None)
@given(st.recursive(VALUES, lambda inner: st.dictionaries(st.sampled_from([*schema_parts.HELD, "$ref", "a"]), inner)))
def test_no_schema_breaks_the_converter(schema: Any):
    """Only BadRequest comes out, whatever stands in the schema."""
    with contextlib.suppress(BadRequest):
        grammar_of(schema if isinstance(schema, dict) else {"anyOf": [schema]}, "schema")
