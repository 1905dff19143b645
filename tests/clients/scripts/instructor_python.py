"""The `instructor` package, with the newest release of `openai` that it takes."""

from __future__ import annotations

from typing import Annotated, Any

import instructor
import openai
from checks import API_KEY, BASE_URL, DESCRIBE, MODEL, MOST, REPEAT, City, Node, ask, run
from pydantic import AfterValidator

# Its other modes leave keeping to the schema to the model.
MODES = (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA)


def a_client(mode: instructor.Mode) -> Any:
    plain = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, timeout=120)
    return instructor.from_openai(plain, mode=mode)


def check_structured_flat() -> None:
    for mode in MODES:
        city = a_client(mode).chat.completions.create(
            model=MODEL, messages=ask(DESCRIBE), response_model=City, temperature=0, max_tokens=MOST, max_retries=0
        )
        assert isinstance(city, City), mode


def check_structured_recursive() -> None:
    for mode in MODES:
        node = a_client(mode).chat.completions.create(
            model=MODEL, messages=ask(REPEAT), response_model=Node, temperature=0, max_tokens=MOST, max_retries=0
        )
        assert isinstance(node, Node), mode


def check_structured_stream() -> None:
    parts = list(
        a_client(instructor.Mode.TOOLS).chat.completions.create_partial(
            model=MODEL, messages=ask(DESCRIBE), response_model=City, temperature=0, max_tokens=MOST
        )
    )
    assert len(parts) > 2 and parts[-1].country in {"France", "Italy", "Japan"}


def check_it_sends_back_what_does_not_fit() -> None:
    """A round of its own: the answer, why it was refused, and the next try."""
    refused: list[str] = []

    def once(city: City) -> City:
        if not refused:
            refused.append(city.name)
            raise ValueError("give the name in capital letters")
        return city

    wanted = Annotated[City, AfterValidator(once)]
    city = a_client(instructor.Mode.TOOLS).chat.completions.create(
        model=MODEL, messages=ask(DESCRIBE), response_model=wanted, temperature=0, max_tokens=MOST, max_retries=2
    )
    assert refused and city is not None


run(globals())
