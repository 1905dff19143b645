from __future__ import annotations

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from llama_orch.contract import operations as ops
from llama_orch.contract.operations import Operation
from llama_orch.web.openapi import describe


@pytest.mark.parametrize("operations", [ops.QUEEN, ops.HIVE, ops.WORKER], ids=["queen", "hive", "worker"])
def test_the_description_is_valid_and_whole(operations: tuple[Operation, ...]):
    document = describe("a service", operations)
    OpenAPIV31SpecValidator(document).validate()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(operation.method, operation.path) for operation in operations}


def test_open_operations_ask_for_no_token():
    paths = describe("queen", ops.QUEEN)["paths"]
    assert paths["/health"]["get"]["security"] == []
    assert paths["/api/v1/nodes"]["get"]["security"] == [{"bearer": []}, {"x-api-key": []}, {"api-key": []}]


def test_a_request_forbids_what_it_does_not_name():
    schemas = describe("queen", ops.QUEEN)["components"]["schemas"]
    assert schemas["NodeCreate"]["additionalProperties"] is False
    assert set(schemas["NodeCreate"]["required"]) == {"node_name", "ssh_host"}
