"""The `litellm` package."""

from __future__ import annotations

from typing import Any

import litellm
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
    ask,
    ask_with_image,
    is_weather_call,
    run,
)

litellm.suppress_debug_info = True


def asked(messages: list[Any], **body: Any) -> Any:
    return litellm.completion(
        model=f"openai/{MODEL}", api_base=BASE_URL, api_key=API_KEY, messages=messages, timeout=120, num_retries=0,
        **{"temperature": 0, "max_tokens": 40, **body},
    )  # fmt: skip


def check_chat() -> None:
    answer = asked(ask(QUESTION), user="me", metadata={"a": "b"})
    assert "Paris" in answer.choices[0].message.content and answer.usage.completion_tokens > 0


def check_stream() -> None:
    chunks = list(asked(ask(QUESTION), stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks, messages=ask(QUESTION))
    assert whole is not None and len(chunks) > 2 and "Paris" in whole.choices[0].message.content


def asked_for_a_call(**more: Any) -> Any:
    return asked(ask(WEATHER_QUESTION), tools=[TOOL], tool_choice="required", max_tokens=MOST, **more)


def is_answered(message: Any, call: Any) -> None:
    is_weather_call(call.function.name, call.function.arguments)
    said = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": WEATHER}
    answer = asked([*ask(WEATHER_QUESTION), message, said], tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.content


def check_tools_by_model_dump() -> None:
    message = asked_for_a_call(parallel_tool_calls=False).choices[0].message
    is_answered(message.model_dump(), message.tool_calls[0])


def check_tools_by_object() -> None:
    message = asked_for_a_call(parallel_tool_calls=False).choices[0].message
    is_answered(message, message.tool_calls[0])


def check_tools_by_deltas() -> None:
    chunks = list(asked_for_a_call(stream=True, parallel_tool_calls=False))
    whole = litellm.stream_chunk_builder(chunks, messages=ask(WEATHER_QUESTION))
    assert whole is not None
    is_answered(whole.choices[0].message, whole.choices[0].message.tool_calls[0])


def check_structured_flat() -> None:
    answer = asked(ask(DESCRIBE), response_format=City, max_tokens=MOST)
    City.model_validate_json(answer.choices[0].message.content)


def check_structured_recursive() -> None:
    answer = asked(ask(REPEAT), response_format=Node, max_tokens=MOST)
    Node.model_validate_json(answer.choices[0].message.content)


def check_structured_with_tools() -> None:
    message = asked(ask(DESCRIBE), tools=[TOOL], response_format=City, max_tokens=MOST).choices[0].message
    assert message.tool_calls or City.model_validate_json(message.content)


def check_n() -> None:
    assert len(asked(ask(QUESTION), n=2, temperature=1, max_tokens=8).choices) == 2


def check_seeds() -> None:
    def drawn() -> str:
        answer = asked(ask("Write a poem."), temperature=1.5, seed=3, max_tokens=10)
        return answer.choices[0].message.content

    assert drawn() == drawn()


def check_images_are_refused_by_name() -> None:
    try:
        asked(ask_with_image())
    except litellm.BadRequestError as error:
        assert "image" in str(error), error
    else:
        raise AssertionError("an image was passed over")


run(globals())
