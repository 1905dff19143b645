"""The `openai` package."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from checks import (
    API_KEY,
    BASE_URL,
    DESCRIBE,
    MODEL,
    MOST,
    QUESTION,
    REPEAT,
    TOOL,
    WEATHER,
    WEATHER_QUESTION,
    City,
    Node,
    Weather,
    ask,
    ask_with_image,
    is_weather_call,
    run,
)

client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=120)
chats = client.chat.completions


def check_models() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def check_chat() -> None:
    answer = chats.create(model=MODEL, messages=ask(QUESTION), temperature=0, max_tokens=40)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None and answer.usage.total_tokens > answer.usage.completion_tokens > 0


def check_stream() -> None:
    options: Any = {"include_usage": True}
    text, reasons, usage = "", [], None
    for chunk in chats.create(
        model=MODEL,
        messages=ask(QUESTION),
        temperature=0,
        max_completion_tokens=40,
        stream=True,
        stream_options=options,
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert "Paris" in text and reasons == ["stop"] and usage is not None


def check_stream_helper() -> None:
    with chats.stream(model=MODEL, messages=ask(QUESTION), temperature=0, max_tokens=40) as stream:
        kinds = {event.type for event in stream}
        assert "Paris" in (stream.get_final_completion().choices[0].message.content or "")
    assert {"chunk", "content.delta", "content.done"} <= kinds


def check_async() -> None:
    async def work() -> str:
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0) as other:
            answer = await other.chat.completions.create(
                model=MODEL, messages=ask(QUESTION), temperature=0, max_tokens=40
            )
            return answer.choices[0].message.content or ""

    assert "Paris" in asyncio.run(work())


def check_fields_that_change_nothing() -> None:
    answer = chats.create(
        model=MODEL, messages=ask(QUESTION), temperature=0, max_tokens=40, n=1, top_p=1, stop=None, seed=None,
        frequency_penalty=None, presence_penalty=0, logit_bias=None, logprobs=None, top_logprobs=None, user="me",
        store=False, metadata={"a": "b"}, service_tier="auto", prompt_cache_key="k", safety_identifier="me",
        verbosity="low", modalities=["text"], parallel_tool_calls=openai.omit,
    )  # fmt: skip
    assert "Paris" in (answer.choices[0].message.content or "")


def check_completions() -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=5, temperature=0, best_of=1, suffix=None
    )
    assert "Paris" in answer.choices[0].text


def asked_for_a_call(**more: Any) -> Any:
    body: Any = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, **more}
    return chats.create(model=MODEL, messages=ask(WEATHER_QUESTION), temperature=0, max_tokens=MOST, **body)


def is_answered(message: Any, call_id: str) -> None:
    """The second half of a round: the message with the call, and what the tool says."""
    messages = [*ask(WEATHER_QUESTION), message, {"role": "tool", "tool_call_id": call_id, "content": WEATHER}]
    answer = chats.create(
        model=MODEL, messages=messages, tools=[TOOL], tool_choice="none", temperature=0, max_tokens=40
    )
    assert answer.choices[0].message.content


def check_tools_by_model_dump() -> None:
    message = asked_for_a_call().choices[0].message
    (call,) = message.tool_calls
    is_weather_call(call.function.name, call.function.arguments)
    is_answered(message.model_dump(), call.id)


def check_tools_by_object() -> None:
    message = asked_for_a_call().choices[0].message
    is_answered(message, message.tool_calls[0].id)


def check_tools_by_deltas() -> None:
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
    for chunk in asked_for_a_call(stream=True):
        for choice in chunk.choices:
            for part in choice.delta.tool_calls or []:
                if part.index == len(message["tool_calls"]):
                    message["tool_calls"].append(part.model_dump())
                    continue
                known = message["tool_calls"][part.index]["function"]
                known["arguments"] += part.function.arguments or ""
    (call,) = message["tool_calls"]
    is_weather_call(call["function"]["name"], call["function"]["arguments"])
    is_answered(message, call["id"])


def check_a_named_tool_is_called_once() -> None:
    choice = asked_for_a_call(tool_choice={"type": "function", "function": {"name": "get_weather"}}).choices[0]
    (call,) = choice.message.tool_calls
    is_weather_call(call.function.name, call.function.arguments)
    assert not choice.message.content


def check_structured_flat() -> None:
    answer = chats.parse(model=MODEL, messages=ask(DESCRIBE), response_format=City, temperature=0, max_tokens=MOST)
    assert isinstance(answer.choices[0].message.parsed, City)


def check_structured_recursive() -> None:
    answer = chats.parse(model=MODEL, messages=ask(REPEAT), response_format=Node, temperature=0, max_tokens=MOST)
    assert isinstance(answer.choices[0].message.parsed, Node)


def check_structured_with_tools() -> None:
    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    answer = chats.parse(
        model=MODEL, messages=ask(DESCRIBE), tools=[tool], response_format=City, temperature=0, max_tokens=MOST
    )
    message = answer.choices[0].message
    assert isinstance(message.parsed, City) or isinstance(message.tool_calls[0].function.parsed_arguments, Weather)


def check_structured_stream() -> None:
    with chats.stream(
        model=MODEL, messages=ask(DESCRIBE), response_format=City, temperature=0, max_tokens=MOST
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, City)


def check_n() -> None:
    answer = chats.create(model=MODEL, messages=ask(QUESTION), n=2, seed=1, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content for choice in answer.choices)


def check_seeds() -> None:
    def drawn(seed: int) -> str:
        answer = chats.create(model=MODEL, messages=ask("Write a poem."), temperature=1.5, seed=seed, max_tokens=10)
        return answer.choices[0].message.content or ""

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in (1, 2, 2**40)}) > 1


def check_images_are_refused_by_name() -> None:
    try:
        chats.create(model=MODEL, messages=ask_with_image(), max_tokens=5)
    except openai.BadRequestError as error:
        assert "image" in str(error.body), error.body
        assert error.code and error.param
    else:
        raise AssertionError("an image was passed over")


def check_a_wrong_key() -> None:
    other = openai.OpenAI(base_url=BASE_URL, api_key="sk-a-wrong-key-of-length", max_retries=0)
    try:
        other.models.list()
    except openai.AuthenticationError as error:
        assert error.status_code == 401
    else:
        raise AssertionError("a wrong key was taken")


run(globals())
