"""What a request asks of its answer's shape, as a grammar that the engine can be trusted with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import ChatRequest, CompletionRequest

from .. import budget
from ..generation import Constraint, WrongGrammar
from . import gbnf, json_schema

log = logging.getLogger(__name__)

SchemaToGrammar = Callable[[dict[str, Any]], str]


def constraint_of(
    body: CompletionRequest | ChatRequest, schema_to_grammar: SchemaToGrammar | None = None
) -> Constraint | None:
    """What holds an answer to `response_format` or to `grammar`, None for neither. Raises BadRequest."""
    response_format = body.response_format
    if body.grammar is not None:
        try:
            with budget.limited():
                gbnf.check(body.grammar)
        except WrongGrammar as error:
            raise BadRequest(f"grammar: {error}", code="wrong_grammar") from None
        except budget.Abandoned:
            raise
        except budget.BudgetSpent as error:
            raise BadRequest(f"grammar: to check it {error}", code="wrong_grammar") from None
        return Constraint(body.grammar)
    if response_format is None or response_format.type == "text":
        return None
    if response_format.json_schema is None:
        return Constraint(json_schema.ANY_OBJECT)
    wanted = response_format.json_schema
    convert = schema_to_grammar or json_schema.converter(strict=wanted.strict)
    return Constraint(grammar_of(wanted.json_schema, "response_format.json_schema.schema", convert))


def grammar_of(schema: dict[str, Any], field: str, schema_to_grammar: SchemaToGrammar = json_schema.grammar) -> str:
    """A checked grammar for the JSON that `schema` allows. Raises BadRequest, which names `field`."""
    try:
        with budget.limited():
            grammar = schema_to_grammar(schema)
            gbnf.check(grammar)
    except WrongGrammar as error:
        reason = error.plain
    except budget.Abandoned:
        raise
    except budget.BudgetSpent as error:
        reason = f"to make a grammar of it {error}"
    except RecursionError:
        reason = "it is nested too deep"
    # A schema is any JSON at all: what it breaks in a converter is the schema's fault.
    except Exception:
        log.info("a schema cannot be read", exc_info=True)
        reason = "a keyword of it has a value of a kind that it cannot have"
    else:
        return grammar
    raise BadRequest(f"{field}: it cannot be held to: {reason}", code="schema_unsupported")
