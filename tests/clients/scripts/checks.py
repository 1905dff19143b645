"""What the Python scripts share: where the service is, what is asked, and a line of JSON for how each check ended."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Annotated, Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field

BASE_URL, API_KEY, MODEL = (os.environ[f"CLIENTS_{name}"] for name in ("BASE_URL", "API_KEY", "MODEL"))
QUESTION = "What is the capital of France? Answer in one short sentence."
WEATHER_QUESTION = "What is the weather in Paris, in celsius?"
WEATHER = "It is 21 degrees and sunny in Paris."
REPEAT = 'Repeat this JSON and nothing else: {"value": 7, "next": {"value": 8, "next": null}}'
DESCRIBE = "Describe Paris as JSON with name, country and whether it lies at the sea."
# A picture of one pixel.
IMAGE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
MOST = 300


class City(BaseModel):
    """A flat schema whose every field has an end."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=30)]
    country: Literal["France", "Italy", "Japan"]
    at_the_sea: bool


class Node(BaseModel):
    """A schema that holds itself, as pydantic writes it."""

    model_config = ConfigDict(extra="forbid")

    value: Annotated[int, Field(ge=0, le=99)]
    next: Optional[Node]  # noqa: UP045  as users write it


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")

    city: Annotated[str, Field(max_length=30)]
    unit: Literal["celsius", "fahrenheit"]


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": Weather.model_json_schema(),
    },
}


def ask(text: str) -> list[Any]:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def ask_with_image() -> list[Any]:
    """A question with a picture in it, as OpenAI's clients write one."""
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    return [{"role": "user", "content": parts}]


def is_weather_call(name: str | None, arguments: str) -> None:
    """Fail where a call is not one of the tool, with arguments that fit it."""
    assert name == "get_weather", name
    Weather.model_validate_json(arguments)


def run(namespace: dict[str, Any]) -> None:
    """Run each `check_…` of a script, and tell how it ended."""
    for name, check in namespace.items():
        if not name.startswith("check_"):
            continue
        why = ""
        try:
            check()
        except Exception:
            why = traceback.format_exc()
        sys.stdout.write(json.dumps({"check": name, "why": why}) + "\n")
        sys.stdout.flush()
