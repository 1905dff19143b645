"""OpenAPI 3.1 from the contract's table of operations; nothing is described twice."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from llama_orch import __version__
from llama_orch.contract.errors import ErrorResponse
from llama_orch.contract.operations import Operation

from .http.gate import TOKEN_HEADERS

_REF = "#/components/schemas/{model}"
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    **{name: {"type": "apiKey", "in": "header", "name": name} for name in TOKEN_HEADERS},
}


def describe(title: str, operations: tuple[Operation, ...]) -> dict[str, Any]:
    """The OpenAPI document of a service that serves `operations`."""
    models: list[type[BaseModel]] = [ErrorResponse]
    for operation in operations:
        models += [m for m in (operation.request, operation.response, operation.events) if m is not None]
    unique = [(model, "validation") for model in dict.fromkeys(models)]
    _, definitions = models_json_schema(unique, ref_template=_REF)  # pyright: ignore[reportArgumentType]
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": _SCHEMES,
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", operation.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in operation.query.items()
    ]
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        # Any one of them.
        "security": [{name: []} for name in _SCHEMES] if operation.auth else [],
        "responses": {
            "200": {"description": "Success", "content": _content(operation)},
            "default": {
                "description": "Error",
                "content": {"application/json": {"schema": _schema(ErrorResponse)}},
            },
        },
    }
    if operation.request is not None:
        described["requestBody"] = {
            "required": not operation.empty_body_ok,
            "content": {"application/json": {"schema": _schema(operation.request)}},
        }
    return described


def _content(operation: Operation) -> dict[str, Any]:
    if operation.events is not None:
        return {"text/event-stream": {"schema": {"type": "string"}, "x-event": _schema(operation.events)}}
    if operation.text:
        return {"text/plain": {"schema": {"type": "string"}}}
    return {"application/json": {"schema": _schema(operation.response) if operation.response else {"type": "object"}}}


def _schema(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
