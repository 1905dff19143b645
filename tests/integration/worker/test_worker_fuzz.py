"""Requests that nobody would think of: against the parser, and against a whole worker by its own description."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from llama_orch.contract import inference as wire
from llama_orch.demo_model import write_demo_model
from tests.support.worker_process import AUTH, WorkerProcess, complete, metric, session_of, until_metric

REQUESTS: list[type[BaseModel]] = [
    wire.CompletionRequest, wire.ChatRequest, wire.EmbeddingRequest, wire.TokenizeRequest,
]  # fmt: skip
# The same examples each time, so that a failure is a change of ours.
STABLE = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
FEW = settings(STABLE, max_examples=25, phases=[Phase.explicit, Phase.generate])

TOKEN_HEADERS = ("authorization", "x-api-key", "api-key")

numbers = st.one_of(st.integers(), st.integers(-3, 3), st.floats(), st.floats(-3, 3))
texts = st.one_of(st.text(max_size=20), st.sampled_from(["", "A", "auto", "required", "json_object", "\x00", "\ufffe"]))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"enum": [1, "x", None]}}}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
# For each field something that is right by itself; which of them go together is for the parser to say.
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "model": st.just("demo"),
    "prompt": st.one_of(
        texts, st.lists(texts, max_size=3), st.lists(st.integers(0, 400), max_size=5),
        st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3),
    ),
    "input": st.one_of(texts, st.lists(texts, max_size=3), st.lists(st.integers(0, 400), max_size=5)),
    "messages": st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
                "content": st.one_of(texts, st.lists(st.fixed_dictionaries({"text": texts}), max_size=2)),
            }
        ),
        max_size=3,
    ),
    "max_tokens": st.integers(0, 2_000_000),
    "max_completion_tokens": st.integers(1, 2_000_000),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(0, 200),
    "min_p": st.floats(0, 1),
    "seed": st.integers(0, 2**32),
    "stop": st.one_of(texts, st.lists(texts, max_size=70)),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repeat_penalty": st.floats(0, 10),
    "logit_bias": st.dictionaries(st.integers(0, 500).map(str), st.floats(-100, 100), max_size=5),
    "n": st.integers(1, 70),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "echo": st.booleans(),
    "ignore_eos": st.booleans(),
    "logprobs": st.one_of(st.booleans(), st.integers(0, 21)),
    "top_logprobs": st.integers(0, 21),
    "grammar": st.sampled_from(['root ::= "a"', "root ::= root", "{", "", 'root ::= [^"]*', 'root ::= "a"{1,99999}']),
    "response_format": st.sampled_from(
        [
            {"type": "text"}, {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}},
            {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}},
            {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "(((("}}},
        ]
    ),
    "tools": st.lists(st.just(TOOL), max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]),
    "parallel_tool_calls": st.booleans(),
    "encoding_format": st.sampled_from(["float", "base64"]),
    "dimensions": st.integers(0, 500),
    "add_special_tokens": st.booleans(),
    "continue_final_message": st.booleans(),
    "add_generation_prompt": st.booleans(),
}  # fmt: skip


def bodies(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of a request's fields, mostly right ones, and at times one that is anything."""
    fields = model.model_fields
    good = st.fixed_dictionaries(
        {name: GOOD[name] for name, field in fields.items() if field.is_required()},
        optional={name: GOOD[name] for name, field in fields.items() if not field.is_required()},
    )
    wrong = st.dictionaries(st.one_of(st.sampled_from(sorted(fields)), texts), anything, min_size=1, max_size=1)
    return st.one_of(good, st.builds(lambda one, other: one | other, good, wrong))


def sparse(body: dict[str, Any], keep: int, required: set[str]) -> dict[str, Any]:
    """The body with few of its optional fields, as all of them together are hardly ever right."""
    return {
        name: value for place, (name, value) in enumerate(body.items()) if name in required or keep >> place % 20 & 1
    }


@pytest.mark.parametrize("model", REQUESTS)
@STABLE
@given(body=anything)
def test_any_json_is_parsed_or_refused(model: type[BaseModel], body: Any):
    parse(model, json.dumps(body).encode())


@pytest.mark.parametrize("model", REQUESTS)
@STABLE
@given(body=st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(model: type[BaseModel], body: bytes):
    parse(model, body)


@pytest.mark.parametrize("model", REQUESTS)
def test_what_is_nearly_right_is_parsed_whole_or_refused(model: type[BaseModel]):
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    outcomes: set[bool] = set()

    @STABLE
    @given(body=bodies(model), keep=st.integers(0, 2**20 - 1).map(lambda number: number & number >> 3))
    def run(body: dict[str, Any], keep: int) -> None:
        body = sparse(body, keep, required)
        parsed = parse(model, json.dumps(body).encode())
        outcomes.add(parsed is not None)
        if parsed is not None:
            asked = {name for name in body.keys() & model.model_fields.keys() if body[name] is not None}
            assert asked == parsed.model_fields_set, "nothing is left out and nothing ignored"

    run()
    assert outcomes == {True, False}, "the examples show both"


def parse(model: type[BaseModel], content: bytes) -> BaseModel | None:
    """What is parsed, the same again from what it is written as; None where it is refused."""
    try:
        parsed = model.model_validate_json(content)
    except ValidationError:
        return None
    again = model.model_validate_json(parsed.model_dump_json(by_alias=True, exclude_unset=True))
    assert again == parsed
    return parsed


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("worker")
    started = WorkerProcess(folder, write_demo_model(folder / "demo.gguf"), slots=4, ctx_per_slot=64)
    asyncio.run(started.until("idle"))
    yield started
    started.kill()


def still_right(worker: WorkerProcess) -> None:
    """The worker answers, has all its slots, and has met nothing that it did not expect."""

    async def ask() -> None:
        async with session_of(worker) as session:
            await until_metric(session, 'slots{state="busy"}', 0)
            assert await complete(session, "A", max_tokens=12, temperature=0) == "BCDEFGHIJKLM"
            assert await metric(session, 'slots{state="busy"}') == 0

    asyncio.run(ask())
    assert worker.process.poll() is None
    assert "Traceback" not in worker.log.read_text()


def description(worker: WorkerProcess) -> dict[str, Any]:
    async def get() -> dict[str, Any]:
        async with session_of(worker) as session, session.get("/openapi.json") as answer:
            return await answer.json()

    return asyncio.run(get())


def ask_for(
    worker: WorkerProcess, operation: Any, mode: schemathesis.GenerationMode, seen: dict[str, set[int]]
) -> None:
    """Send requests for an operation, right or wrong by its description, and note the statuses of the answers."""

    @FEW
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: schemathesis.Case) -> None:
        if mode.is_positive:
            # The description has three headers for the token, and any text is one by its form.
            for name in TOKEN_HEADERS:
                case.headers.pop(name, None)
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            # Another model's name would be all that is looked at.
            case.body["model"] = "demo"
        answer = case.call(base_url=worker.url, headers=AUTH, timeout=30)
        seen.setdefault(case.path, set()).add(answer.status_code)
        checks: list[Any] = [not_a_server_error]
        if not answer.headers["content-type"][0].startswith("text/event-stream"):
            checks.append(response_schema_conformance)
        case.validate_response(answer, checks=checks)
        # Wrong are at times the headers, the token's too. The one model has few names.
        assert answer.status_code in {200, 400, 401, 413} | ({404} if "{model}" in case.path else set())

    run()


def test_the_worker_withstands_what_its_own_description_suggests(worker: WorkerProcess):
    schema = schemathesis.openapi.from_dict(description(worker))
    seen: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()  # pyright: ignore[reportAttributeAccessIssue]
        for mode in schemathesis.GenerationMode:
            if mode.is_positive or list(operation.body):
                ask_for(worker, operation, mode, seen)
    assert len(seen) == 10
    # What the description cannot say (which fields go together) makes chats rare that are right.
    for path in ("/v1/completions", "/v1/tokenize", "/v1/models", "/health", "/metrics", "/openapi.json"):
        assert 200 in seen[path], (path, seen)
    still_right(worker)


@pytest.mark.parametrize(
    ("path", "model"), [("/v1/completions", wire.CompletionRequest), ("/v1/chat/completions", wire.ChatRequest)]
)
def test_the_worker_withstands_what_is_nearly_right(worker: WorkerProcess, path: str, model: type[BaseModel]):
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    seen: set[int] = set()

    async def send(body: dict[str, Any]) -> None:
        async with session_of(worker) as session, session.post(path, data=json.dumps(body)) as answer:
            text = await answer.text()
        seen.add(answer.status)
        assert answer.status in {200, 400, 404}, text
        if answer.content_type == "text/event-stream":
            assert text.endswith("data: [DONE]\n\n") or "grammar" in text.rpartition("event: error")[2], text[-500:]
        else:
            json.loads(text)

    @settings(STABLE, max_examples=100, phases=[Phase.generate])
    @given(body=bodies(model), keep=st.integers(0, 2**20 - 1).map(lambda number: number & number >> 3))
    def run(body: dict[str, Any], keep: int) -> None:
        asyncio.run(send(sparse(body, keep, required)))

    run()
    assert {200, 400} <= seen
    still_right(worker)


def test_what_is_far_too_much_is_refused_and_costs_nothing(worker: WorkerProcess):
    deep: Any = {}
    for _ in range(80):
        deep = {"type": "array", "items": deep}
    bottomless = b'{"messages": [{"role": "user", "content": "A"}], "response_format": ' + b'{"a": ' * 50_000
    wide = {"type": "object", "properties": {f"p{number}": {"enum": list(range(40))} for number in range(2000)}}
    chat = {"messages": [{"role": "user", "content": "A"}]}

    def shaped(schema: Any) -> dict[str, Any]:
        return {**chat, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}

    cases: list[tuple[str, Any, set[int]]] = [
        ("/v1/completions", {"prompt": "A", "stop": ["x"] * 10_000}, {400}),
        ("/v1/completions", {"prompt": "A", "stop": ["x" * 200] * 64, "max_tokens": 3}, {200}),
        ("/v1/completions", {"prompt": "A" * 900_000}, {400}),
        ("/v1/completions", {"prompt": "A" * 2_000_000}, {413}),
        ("/v1/completions", {"prompt": [1] * 300_000}, {400}),
        ("/v1/completions", {"prompt": ["A"] * 129}, {400}),
        ("/v1/completions", {"prompt": "A", "logit_bias": {str(one): 1 for one in range(2000)}}, {400}),
        ("/v1/completions", {"prompt": "A", "grammar": "root ::= " + "(" * 30_000}, {400}),
        ("/v1/completions", {"prompt": "A", "grammar": "root ::= " + '"a" | ' * 9000 + '"b"'}, {200, 400}),
        ("/v1/completions", {"prompt": "A", "grammar": 'root ::= (("a"{1,999}){1,999}){1,999}'}, {400}),
        ("/v1/completions", {"prompt": "A", "grammar": 'root ::= ""*'}, {200, 400}),
        ("/v1/chat/completions", shaped(deep), {200, 400}),
        ("/v1/chat/completions", bottomless, {400}),
        ("/v1/chat/completions", shaped({**wide, "required": []}), {200, 400}),
        ("/v1/chat/completions", shaped({"type": "string", "pattern": "^(a?){60}a{60}$"}), {200, 400}),
        ("/v1/chat/completions", shaped({"type": "array", "maxItems": 10**9}), {200, 400}),
        ("/v1/chat/completions", shaped({"type": "integer", "minimum": -(10**300)}), {200, 400}),
        ("/v1/chat/completions", {"messages": chat["messages"] * 5000}, {400}),
        ("/v1/tokenize", {"prompt": "A" * 900_000}, {200}),
    ]

    async def send() -> None:
        async with session_of(worker) as session:
            for path, body, statuses in cases:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                async with asyncio.timeout(20), session.post(path, data=data) as answer:
                    text = await answer.text()
                assert answer.status in statuses, f"{data[:300]}: {answer.status} {text[:300]}"

    asyncio.run(send())
    still_right(worker)
