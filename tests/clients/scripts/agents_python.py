"""The `openai-agents` package: OpenAI's Agents SDK, over chat completions."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
from agents import (
    Agent,
    AgentOutputSchema,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import (
    API_KEY,
    BASE_URL,
    DESCRIBE,
    IMAGE,
    MODEL,
    MOST,
    QUESTION,
    REPEAT,
    WEATHER,
    WEATHER_QUESTION,
    City,
    Node,
    run,
)

set_tracing_disabled(True)
called: list[str] = []


@function_tool
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """The weather of a city."""
    called.append(city)
    return f"{WEATHER} ({unit})"


def an_agent(settings: ModelSettings | None = None, **options: Any) -> Agent[Any]:
    client = openai.AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=120)
    known = ModelSettings(temperature=0, max_tokens=40).resolve(settings)
    return Agent(
        name="Helper",
        instructions="Be brief.",
        model=OpenAIChatCompletionsModel(model=MODEL, openai_client=client),
        model_settings=known,
        **options,
    )


def check_chat() -> None:
    result = Runner.run_sync(an_agent(), QUESTION)
    assert "Paris" in result.final_output
    again = [*result.to_input_list(), {"role": "user", "content": "And of Italy?"}]
    assert Runner.run_sync(an_agent(), again).final_output


def check_stream() -> None:
    async def work() -> str:
        result = Runner.run_streamed(an_agent(), QUESTION)
        deltas = [event async for event in result.stream_events() if event.type == "raw_response_event"]
        assert len(deltas) > 2
        return result.final_output

    assert "Paris" in asyncio.run(work())


def check_tools() -> None:
    settings = ModelSettings(tool_choice="required", max_tokens=MOST, parallel_tool_calls=False)
    called.clear()
    agent = an_agent(settings, tools=[get_weather], tool_use_behavior="stop_on_first_tool")
    result = Runner.run_sync(agent, WEATHER_QUESTION)
    assert called and WEATHER in result.final_output
    talk: Any = [*result.to_input_list(), {"role": "user", "content": "Say that again."}]
    assert Runner.run_sync(an_agent(), talk).final_output


def check_tools_by_deltas() -> None:
    async def work() -> str:
        settings = ModelSettings(tool_choice="get_weather", max_tokens=MOST)
        agent = an_agent(settings, tools=[get_weather], tool_use_behavior="stop_on_first_tool")
        result = Runner.run_streamed(agent, WEATHER_QUESTION)
        async for _ in result.stream_events():
            pass
        return result.final_output

    called.clear()
    assert WEATHER in asyncio.run(work()) and len(called) == 1


def check_structured_flat() -> None:
    result = Runner.run_sync(an_agent(ModelSettings(max_tokens=MOST), output_type=City), DESCRIBE)
    assert isinstance(result.final_output, City)


def check_structured_recursive() -> None:
    output = AgentOutputSchema(Node, strict_json_schema=False)
    result = Runner.run_sync(an_agent(ModelSettings(max_tokens=MOST), output_type=output), REPEAT)
    assert isinstance(result.final_output, Node)


def check_structured_with_tools() -> None:
    settings = ModelSettings(max_tokens=MOST, tool_choice="none")
    result = Runner.run_sync(an_agent(settings, output_type=City, tools=[get_weather]), DESCRIBE)
    assert isinstance(result.final_output, City)


def check_images_are_refused_by_name() -> None:
    parts: Any = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": IMAGE}]
    try:
        Runner.run_sync(an_agent(), [{"role": "user", "content": parts}])
    except openai.BadRequestError as error:
        assert "image" in str(error.body), error.body
    else:
        raise AssertionError("an image was passed over")


run(globals())
