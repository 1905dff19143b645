"""What a client is told never shows what our code is made of."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ValidationError

from llama_orch.contract import operations as ops
from llama_orch.contract.hive import SpawnRequest
from llama_orch.contract.inference import CompletionRequest
from llama_orch.contract.openai.request import OpenAIRequest
from llama_orch.contract.operations import Operation
from llama_orch.web import errors

REQUESTS = dict.fromkeys(o.request for o in vars(ops).values() if isinstance(o, Operation) and o.request)
VALUES = [
    *(None, 1, -1, 1.5, "x", True, [], {}, [1], ["a"], [[1], ["a"]], [None], {"a": None}, {"type": "x"}, ["a"] * 4097),
    *([{"type": 1}], [{"role": "user", "content": [{"type": 1}]}], [{"role": "user", "content": 5}]),
]


@pytest.mark.parametrize("model", REQUESTS, ids=lambda model: model.__name__)
def test_no_field_is_named_by_our_own_types(model: type[BaseModel]):
    for field in model.model_fields:
        for value in VALUES:
            try:
                model.model_validate_json(json.dumps({field: value}))
            except ValidationError as error:
                said = errors.from_validation(error)
                text = said.message + json.dumps(said.details)
                assert not any(word in text for word in ("functools", "function-", "0x", "constrained", "list[")), text
                assert not any(one.__name__ in text for one in OpenAIRequest.__subclasses__()), text


def test_a_field_of_several_types_is_named_once_for_each():
    with pytest.raises(ValidationError) as error:
        CompletionRequest.model_validate_json('{"prompt": []}')
    named = {entry["field"] for entry in errors.from_validation(error.value).details["fields"]}
    assert named == {"prompt"}


def test_an_unknown_field_keeps_its_name_whatever_it_looks_like():
    with pytest.raises(ValidationError) as error:
        SpawnRequest.model_validate_json('{"model_ref": "hf:a/b", "backend": "cpu", "list[str]": 1}')
    assert errors.from_validation(error.value).message == "list[str]: unknown field"
