"""`llama-orch chat`: one question, or a conversation, with a worker."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_orch import client
from llama_orch.contract.errors import ApiError
from llama_orch.contract.hive import Worker, WorkerStatus
from llama_orch.contract.inference import ChatMessage, ChatRequest, StreamOptions

from .connection import Connection, HiveOption, JsonOption, QueenOption, TokenFileOption, inference_token
from .output import err, is_interactive, line, print_json, printable
from .running import Failed, request, run, tell
from .watching import SERVING

InferenceTokenOption = Annotated[
    Path | None,
    typer.Option(
        "--inference-token-file",
        metavar="FILE",
        envvar="LLAMA_ORCH_INFERENCE_TOKEN_FILE",
        help="File with the fleet's inference token.",
    ),
]


@dataclass
class Answer:
    """A streamed answer and its times in seconds; `first_s` is None while no text came."""

    text: str = ""
    tokens: int | None = None
    first_s: float | None = None
    total_s: float = 0.0

    def __str__(self) -> str:
        first = f", first after {self.first_s:.2f} s" if self.first_s is not None else ""
        count = "?" if self.tokens is None else str(self.tokens)
        return f"{count} tokens in {self.total_s:.2f} s{first}"


def chat(
    prompt: Annotated[str | None, typer.Argument(help="The question; without it a conversation begins.")] = None,
    *,
    worker: Annotated[str | None, typer.Option("--worker", metavar="ID|NAME|URL", help="Which worker.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    hive: HiveOption = None,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    inference_token_file: InferenceTokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a worker: one question and its answer, or a conversation."""
    if as_json and prompt is None:
        raise typer.BadParameter("--json needs a question on the command line")
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    messages = [ChatMessage(role="system", content=system)] if system else []
    if prompt is not None:
        asked = request(ChatRequest, messages=[*messages, ChatMessage(role="user", content=prompt)], **options)
    else:
        asked = None

    async def find() -> tuple[str, str]:
        return await _find(Connection(queen, hive, token_file), worker), inference_token(inference_token_file)

    url, token = run(find())
    if asked is None:
        _converse(url, token, messages, options)
    elif as_json:
        print_json(run(_whole(url, token, asked)))
    else:
        run(_print_answer(url, token, asked))


async def stream_answer(url: str, token: str, asked: ChatRequest, write: Callable[[str], None]) -> Answer:
    """Ask the worker at `url` and hand each piece of its answer to `write` as it comes."""
    answer, began = Answer(), time.monotonic()
    asked = asked.model_copy(update={"stream_options": StreamOptions(include_usage=True)})
    async with client.Worker(url, token) as asking, aclosing(_pieces(asking, asked, answer)) as pieces:
        async for piece in pieces:
            if answer.first_s is None:
                answer.first_s = time.monotonic() - began
            answer.text += piece
            write(printable(piece))
    answer.total_s = time.monotonic() - began
    return answer


async def _pieces(asking: client.Worker, asked: ChatRequest, answer: Answer) -> AsyncGenerator[str, None]:
    async for chunk in asking.chat_streamed(asked):
        if chunk.usage is not None:
            answer.tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            delta: dict[str, Any] = choice.get("delta") or {}
            if text := delta.get("content"):
                yield str(text)


async def _whole(url: str, token: str, asked: ChatRequest) -> Any:
    async with client.Worker(url, token) as asking:
        return await asking.chat(asked)


async def _print_answer(url: str, token: str, asked: ChatRequest) -> Answer:
    answer = await stream_answer(url, token, asked, _write)
    _write("\n")
    if is_interactive():
        line(str(answer), style="dim", console=err)
    return answer


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def _find(connection: Connection, wanted: str | None) -> str:
    if wanted and "://" in wanted:
        return wanted
    async with await connection.open_hive() as hive:
        workers = await hive.list_workers()
    if wanted:
        workers = [worker for worker in workers if wanted in (worker.id, worker.name)]
        if not workers:
            raise Failed(f"there is no worker {wanted}: see 'llama-orch workers list'")
    return _url_of_best(workers)


def _url_of_best(workers: list[Worker]) -> str:
    """An idle worker before a busy one."""
    serving = [worker for worker in workers if worker.status in SERVING and worker.url]
    serving.sort(key=lambda worker: worker.status != WorkerStatus.IDLE)
    if serving:
        return str(serving[0].url)
    if workers:
        states = ", ".join(f"{worker.id} is {worker.status}" for worker in workers)
        raise Failed(f"no worker serves ({states}): see 'llama-orch workers list'")
    raise Failed("no worker runs there: start one with 'llama-orch workers start MODEL'")


def _converse(url: str, token: str, messages: list[ChatMessage], options: dict[str, Any]) -> None:
    line(f"Talking to {url}. Ctrl-C stops an answer, Ctrl-D ends.", style="dim", console=err)
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            line(console=err)
            return
        if not text:
            continue
        asked = request(ChatRequest, messages=[*messages, ChatMessage(role="user", content=text)], **options)
        try:
            answer = _run_answer(url, token, asked)
        except ApiError as error:
            tell(error)
            continue
        if answer:
            messages = [*asked.messages, ChatMessage(role="assistant", content=answer.text)]


def _run_answer(url: str, token: str, asked: ChatRequest) -> Answer | None:
    try:
        return asyncio.run(_print_answer(url, token, asked))
    except KeyboardInterrupt:
        line("\n(stopped)", style="dim", console=err)
        return None
