"""Has the hub asked what a reference means, by a process that may be ended (`hub_child.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

from llama_orch.contract.common import Problem

from . import process
from .download_run import environment
from .hub_model import LONGEST_QUESTION_S, Question, Resolved
from .problems import Failed

log = logging.getLogger(__name__)
MODULE = "llama_orch.hive.hub_child"
_GRACE_S = 5.0


async def ask(question: Question, cache: Path) -> Resolved:
    """What the hub says. Raises Failed, also where it says nothing in time, or more than a listing can be."""
    child = await asyncio.create_subprocess_exec(
        *(process.interpreter(), "-P", "-m", MODULE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(question.endpoint, cache),
        start_new_session=True,
    )
    said = b""
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_QUESTION_S + _GRACE_S):
                said, _ = await child.communicate(question.model_dump_json().encode() + b"\n")
        return _answer(said)
    except (ValueError, LookupError):
        log.error("the process that asked the hub ended with status %s, without an answer", child.returncode)  # noqa: TRY400
        raise Failed(
            "hub_failed",
            f"the hub says nothing of {question.ref.repo} within {LONGEST_QUESTION_S} s, or more than can be",
            "check the hive's way to the hub, and hub_endpoint",
            retry=True,
        ) from None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()


def _answer(said: bytes) -> Resolved:
    answer: dict[str, Any] = json.loads(said)
    if "problem" in answer:
        problem = Problem.model_validate(answer["problem"])
        raise Failed(
            problem.code, problem.message, problem.what_to_do, retry=bool(answer["retry"]), **answer["details"]
        )
    return Resolved.model_validate(answer["model"])
