"""From a hive to a first answer: a model, a worker for it, a question."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from pydantic import ValidationError

from llama_orch.client import Hive, why_not_connected
from llama_orch.contract import model_ref as refs
from llama_orch.contract.errors import ApiError, BadRequest, Conflict
from llama_orch.contract.hive import (
    Backend,
    DownloadRequest,
    DownloadStatus,
    ModelStatus,
    SpawnRequest,
    Worker,
)
from llama_orch.contract.inference import ChatMessage, ChatRequest

from .chat import Answer, stream_answer
from .output import line, out
from .running import Failed
from .watching import ENDED_DOWNLOAD, SERVING, follow_download, follow_worker, problem

# Small enough for any machine (about 0.5 GB), good enough to answer a question.
DEFAULT_MODEL = refs.HubRef("Qwen/Qwen2.5-0.5B-Instruct-GGUF", None, "qwen2.5-0.5b-instruct-q4_k_m.gguf")
QUESTION = "Hello! In one sentence: what can you do for me?"
ANSWER_TOKENS = 120
HUB = "https://huggingface.co"
HUB_SECONDS = 6.0
READY_SECONDS = 300.0


@dataclass(frozen=True)
class Chosen:
    """A model that is on the hive's disk."""

    model_ref: str
    filename: str | None = None


async def get_model(hive: Hive, wanted: str | None, demo_folder: Path) -> Chosen:
    """The model to serve: `wanted`, or a small real one from the hub, or the project's own where there is no hub.

    Raises Failed where `wanted` cannot be had.
    """
    if wanted is not None:
        try:
            ref = refs.parse(wanted)
        except ValueError as error:
            raise Failed(f"--model is {wanted!r}: {error}") from None
        if isinstance(ref, refs.FileRef):
            return Chosen(ref.base)
        if (why := await _download(hive, ref)) is not None:
            raise Failed(f"{wanted} cannot be had: {why}")
        return Chosen(ref.base, ref.filename)
    why = await _download(hive, DEFAULT_MODEL)
    if why is None:
        return Chosen(DEFAULT_MODEL.base, DEFAULT_MODEL.filename)
    line(f"{DEFAULT_MODEL.base} cannot be had: {why}", style="yellow")
    line("Using the project's own demonstration model instead: it is real, but always gives the same answer.")
    return await make_demo_model(demo_folder)


async def make_demo_model(folder: Path) -> Chosen:
    """Write the demonstration model into `folder`. Raises Failed where it cannot be written."""
    # The writer needs numpy and gguf, which only a hive has and which are slow to import.
    from llama_orch.demo_model import write_demo_model  # noqa: PLC0415

    try:
        path = await asyncio.to_thread(write_demo_model, folder / "llama-orch-demo.gguf")
    except OSError as error:
        raise Failed(f"cannot write the demonstration model into {folder}: {error.strerror}") from None
    return Chosen(f"file:{path}")


async def _download(hive: Hive, ref: refs.HubRef) -> str | None:
    """Have the hive download `ref` and show it; returns why it cannot be had."""
    for model in await hive.list_models():
        if model.model_ref == ref.base and model.filename == ref.filename and model.status == ModelStatus.READY:
            return None
    if (why := await _ask_hub(ref)) is not None:
        return why
    try:
        download = await hive.download_model(DownloadRequest(model_ref=ref.base, filename=ref.filename))
    except ApiError as error:
        return error.message
    if download.chosen_because:
        line(f"{download.filename}: {download.chosen_because}")
    if download.status not in ENDED_DOWNLOAD:
        download = await follow_download(hive, download, console=out)
    if download.status == DownloadStatus.READY:
        return None
    return problem(f"the download {download.status}", download.error)


async def _ask_hub(ref: refs.HubRef) -> str | None:
    """Why the hub cannot give `ref`, found out within a few seconds; None where it can."""
    hub = (os.environ.get("LLAMA_ORCH_HIVE_HUB_ENDPOINT") or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    # The file's own address, since it leads to another server than the hub's pages.
    revision = ref.revision or ref.DEFAULT_REVISION
    path = f"{ref.repo}/resolve/{revision}/{ref.filename}" if ref.filename else f"api/models/{ref.repo}"
    try:
        async with (
            aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(total=HUB_SECONDS)) as session,
            session.get(f"{hub}/{path}", headers={"Range": "bytes=0-0"}) as answer,
        ):
            # A gated model is the hive's to judge: it may have a token.
            known = (200, 206, 401, 403)
            return None if answer.status in known else f"{hub} answers {answer.status} for it"
    except TimeoutError:
        return f"the hub {hub} did not answer within {HUB_SECONDS:g} s"
    except aiohttp.ClientConnectorError as error:
        return f"the hub {hub} cannot be reached ({why_not_connected(error)})"
    except (aiohttp.ClientError, OSError) as error:
        return f"the hub {hub} cannot be reached ({error})"


async def start_worker(hive: Hive, model: Chosen, *, name: str, slots: int = 2) -> Worker:
    """Start a worker, on a GPU where the hive has one that it can use, and wait until it serves. Raises Failed."""
    devices = await hive.devices()
    backends: tuple[Backend, ...] = ("cuda", "cpu") if "cuda" in devices.backends else ("cpu",)
    for backend in backends:
        try:
            spawn = SpawnRequest(
                model_ref=model.model_ref, filename=model.filename, backend=backend, slots=slots, name=name
            )
        except ValidationError as error:
            raise Failed(f"{model.model_ref}: {error.errors()[0]['msg']}; choose another folder with --dir") from None
        try:
            worker = await _spawn(hive, spawn)
        except BadRequest as error:
            if backend == backends[-1]:
                raise
            line(f"Not on the GPU: {error.message}", style="yellow")
            continue
        worker = await follow_worker(hive, worker, timeout=READY_SECONDS, console=out)
        if worker.status in SERVING:
            return worker
        raise Failed(problem(f"the worker is {worker.status}", worker.last_error))
    raise AssertionError


async def _spawn(hive: Hive, spawn: SpawnRequest) -> Worker:
    try:
        return await hive.spawn_worker(spawn)
    except Conflict:
        # An earlier run's worker of that name serves something else.
        for worker in await hive.list_workers():
            if worker.name == spawn.name:
                await hive.stop_worker(worker.id)
        return await hive.spawn_worker(spawn)


async def ask(url: str, token: str, question: str = QUESTION) -> Answer:
    """Ask the worker at `url`, show question and answer as they come, and return the answer."""
    line(f"> {question}", style="bold")
    request = ChatRequest(messages=[ChatMessage(role="user", content=question)], max_tokens=ANSWER_TOKENS)
    answer = await stream_answer(url, token, request, lambda text: out.print(text, end="", markup=False))
    line()
    line(f"({answer})", style="dim")
    return answer
