"""Has the hub asked what a reference means, by a process that may be ended (`child.py`)."""

from __future__ import annotations

import logging
from pathlib import Path

from llama_orch.base.one_answer import NoAnswer
from llama_orch.base.one_answer import ask as ask_process

from ...problems import Failed, answered
from .description import LONGEST_QUESTION_S, Found, Question, Resolved
from .environment import environment

log = logging.getLogger(__name__)
MODULE = "llama_orch.hive.models.hub.child"
_GRACE_S = 5.0


async def ask(question: Question, cache: Path) -> Resolved:
    """What the hub says. Raises Failed, also where it says nothing in time, or more than a listing can be."""
    try:
        return await ask_process(
            MODULE,
            understand=lambda said: answered(said, Found).model,
            within_s=LONGEST_QUESTION_S + _GRACE_S,
            environment=environment(question.endpoint, cache),
            question=question.model_dump_json().encode() + b"\n",
        )
    except NoAnswer as error:
        log.error("the process that asked the hub %s", error)  # noqa: TRY400
        raise Failed(
            "hub_failed",
            f"the hub says nothing of {question.ref.repo} within {LONGEST_QUESTION_S} s, or more than can be",
            "check the hive's way to the hub, and hub_endpoint",
            retry=True,
        ) from None
