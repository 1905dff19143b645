"""A model's facts as the agent gets them: read by a process that may be ended, and remembered.

What a file cannot be read for is kept on the disk, so that neither a user who asks again nor the next start of the
agent pays for it twice; a file that was changed is read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from llama_orch.base import files
from llama_orch.base.one_answer import NoAnswer, ask
from llama_orch.contract.common import Problem

from ..child_environment import child_environment
from ..problems import Failed, answered
from . import gguf_header
from .facts import ModelFacts
from .facts_child import LONGEST_S, FactsRead

log = logging.getLogger(__name__)
FILE = "unreadable-models.json"
MODULE = "llama_orch.hive.models.facts_child"
GRACE_S = 5.0
_MOST_REMEMBERED = 100

# What changes with a file's content: its device, number, size and time of change.
Identity = tuple[tuple[int, ...], ...]
remembered: dict[tuple[Path, Identity], ModelFacts] = {}


class _Unreadable(BaseModel):
    """A model that cannot be read, as it stands in the state folder."""

    path: str
    identity: Identity
    problem: Problem


_LIST = TypeAdapter(list[_Unreadable])


async def facts(path: Path, state_dir: Path) -> ModelFacts:
    """The facts of a model whose first file is `path`. Raises Failed where it is missing, cut off or no GGUF."""
    identity = await asyncio.to_thread(_identity, path)
    if (known := remembered.get((path, identity))) is not None:
        return known
    unreadable = await asyncio.to_thread(_unreadable, state_dir)
    for one in unreadable:
        if one.path == str(path) and one.identity == identity:
            raise Failed(one.problem.code, one.problem.message, one.problem.what_to_do)
    try:
        found = await _read(path)
    except Failed as failed:
        if not failed.retry and failed.problem.code != "model_not_found":
            unreadable.append(_Unreadable(path=str(path), identity=identity, problem=failed.problem))
            await asyncio.to_thread(_remember, state_dir, unreadable[-_MOST_REMEMBERED:])
        raise
    while len(remembered) >= _MOST_REMEMBERED:
        del remembered[next(iter(remembered))]
    remembered[path, identity] = found
    return found


async def _read(path: Path) -> ModelFacts:
    try:
        return await ask(
            MODULE,
            str(path),
            understand=lambda said: answered(said, FactsRead).facts,
            within_s=LONGEST_S + GRACE_S,
            environment=child_environment(),
            stderr=asyncio.subprocess.DEVNULL,
        )
    except NoAnswer as error:
        log.error("the process that read %s %s", path, error)  # noqa: TRY400
        if error.answer.was_cut:
            raise Failed(
                "model_not_read",
                f"the process that read the header of {path.name} was ended (status {error.answer.status})",
                "ask again; if nobody killed it, the kernel did for want of memory: dmesg says so",
                retry=True,
            ) from None
        raise Failed(
            "model_unreadable",
            f"the header of {path.name} takes too long, or too much memory, to be read",
            "download the file again; one that is so again was made to do harm",
        ) from None


def _identity(path: Path) -> Identity:
    found: list[tuple[int, ...]] = []
    for name in gguf_header.part_names(path.name):
        with contextlib.suppress(OSError):
            one = (path.parent / name).stat()
            found.append((one.st_dev, one.st_ino, one.st_size, one.st_ctime_ns))
    return tuple(found)


def _unreadable(state_dir: Path) -> list[_Unreadable]:
    try:
        return _LIST.validate_python(files.read_json(state_dir / FILE))
    except ValidationError:
        return []


def _remember(state_dir: Path, unreadable: list[_Unreadable]) -> None:
    try:
        files.write_text(state_dir / FILE, _LIST.dump_json(unreadable).decode())
    except OSError as error:
        log.warning("that a model cannot be read is not remembered: %s", error.strerror)
