"""The `langchain-openai` package."""

from __future__ import annotations

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
    WEATHER,
    WEATHER_QUESTION,
    City,
    Node,
    Weather,
    ask_with_image,
    is_weather_call,
    run,
)
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


def a_chat(**options: Any) -> ChatOpenAI:
    known: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "max_retries": 0, "timeout": 120}
    return ChatOpenAI(base_url=BASE_URL, api_key=API_KEY, model=MODEL, **{**known, **options})


@tool(args_schema=Weather)
def get_weather(city: str, unit: str) -> str:
    """The weather of a city."""
    return f"{WEATHER} ({city}, {unit})"


def check_chat() -> None:
    answer = a_chat().invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
    assert "Paris" in answer.text and answer.usage_metadata and answer.usage_metadata["output_tokens"] > 0


def check_stream() -> None:
    parts = list(a_chat(stream_usage=True).stream(QUESTION))
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    assert len(parts) > 2 and "Paris" in whole.text and whole.usage_metadata


def check_tools_by_object() -> None:
    chat = a_chat(max_tokens=MOST)
    message = chat.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False).invoke(WEATHER_QUESTION)
    (call,) = message.tool_calls
    Weather.model_validate(call["args"])
    said = get_weather.invoke(call)
    assert isinstance(said, ToolMessage)
    assert (
        chat.bind_tools([get_weather], tool_choice="none").invoke([HumanMessage(WEATHER_QUESTION), message, said]).text
    )


def check_tools_by_deltas() -> None:
    chat = a_chat(max_tokens=MOST)
    whole: AIMessageChunk | None = None
    for part in chat.bind_tools([get_weather], tool_choice="get_weather").stream(WEATHER_QUESTION):
        assert isinstance(part, AIMessageChunk)
        whole = part if whole is None else whole + part
    assert whole is not None
    (chunk,) = whole.tool_call_chunks
    is_weather_call(chunk["name"], chunk["args"] or "")
    said = ToolMessage(WEATHER, tool_call_id=str(chunk["id"]))
    assert chat.bind_tools([get_weather], tool_choice="none").invoke([HumanMessage(WEATHER_QUESTION), whole, said]).text


def check_structured_flat() -> None:
    for method in ("json_schema", "function_calling"):
        chat = a_chat(max_tokens=MOST).with_structured_output(City, method=method)
        assert isinstance(chat.invoke(DESCRIBE), City), method


def check_structured_recursive() -> None:
    chat = a_chat(max_tokens=MOST).with_structured_output(Node, method="json_schema")
    assert isinstance(chat.invoke(REPEAT), Node)


def check_structured_with_tools() -> None:
    chat = a_chat(max_tokens=MOST).bind_tools([get_weather], response_format=City, strict=True)
    answer = chat.invoke(DESCRIBE)
    assert answer.tool_calls or City.model_validate_json(answer.text)


def check_n() -> None:
    result = a_chat(n=2, temperature=1, seed=1, max_tokens=8).generate([[HumanMessage(QUESTION)]])
    assert len(result.generations[0]) == 2


def check_seeds() -> None:
    chat = a_chat(temperature=1.5, seed=3, max_tokens=10)
    assert chat.invoke("Write a poem.").text == chat.invoke("Write a poem.").text


def check_images_are_refused_by_name() -> None:
    try:
        a_chat().invoke(ask_with_image())
    except openai.BadRequestError as error:
        assert "image" in str(error.body), error.body
    else:
        raise AssertionError("an image was passed over")


run(globals())
