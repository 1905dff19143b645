"""`llama-orch chat`: one question, or a conversation, with a worker."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_orch import client
from llama_orch.client import NoAnswer
from llama_orch.contract.errors import ApiError
from llama_orch.contract.hive import Worker, WorkerStatus
from llama_orch.contract.inference import ChatMessage, ChatRequest, StreamOptions

from .connection import (  # fmt: skip
    Connection,
    HiveOption,
    JsonOption,
    QueenOption,
    TokenFileOption,
    Unusable,
    inference_token,
)
from .lost_worker import explain
from .output import err, is_interactive, line, print_json, printable
from .running import Failed, request, run, tell_any
from .watching import SERVING, problem

InferenceTokenOption = Annotated[
    Path | None,
    typer.Option(
        "--inference-token-file",
        metavar="FILE",
        envvar="LLAMA_ORCH_INFERENCE_TOKEN_FILE",
        help="File with the hive's inference token, or the fleet's.",
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


@dataclass(frozen=True)
class _Partner:
    """Whom we talk to; `worker` is what its hive said of it, None where an address was given."""

    url: str
    token: str
    worker: Worker | None
    connection: Connection

    async def why(self, error: NoAnswer) -> NoAnswer | Failed:
        """What to tell instead of `error`."""
        return await explain(error, self.connection.open_hive, self.url, self.worker)


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

    connection = Connection(queen, hive, token_file)

    async def find() -> _Partner:
        url, found = await _find(connection, worker)
        return _Partner(url, inference_token(inference_token_file, hive), found, connection)

    if asked is None:
        _converse(find, messages, options)
    elif as_json:
        print_json(run(_whole(run(find()), asked)))
    else:
        run(_print_answer(run(find()), asked))


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


async def _whole(partner: _Partner, asked: ChatRequest) -> Any:
    try:
        async with client.Worker(partner.url, partner.token) as asking:
            return await asking.chat(asked)
    except NoAnswer as error:
        raise await partner.why(error) from None


async def _print_answer(partner: _Partner, asked: ChatRequest) -> Answer:
    begun = False

    def write(text: str) -> None:
        nonlocal begun
        begun = True
        _write(text)

    try:
        answer = await stream_answer(partner.url, partner.token, asked, write)
    except NoAnswer as error:
        if begun:
            _write("\n")
        raise await partner.why(error) from None
    _write("\n")
    if is_interactive():
        line(str(answer), style="dim", console=err)
    return answer


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def _find(connection: Connection, wanted: str | None) -> tuple[str, Worker | None]:
    if wanted and "://" in wanted:
        return wanted, None
    async with await connection.open_hive() as hive:
        workers = await hive.list_workers()
    if wanted:
        workers = [worker for worker in workers if wanted in (worker.id, worker.name)]
        if not workers:
            raise Failed(f"there is no worker {wanted}: see 'llama-orch workers list'")
    best = _best(workers)
    return str(best.url), best


def _best(workers: list[Worker]) -> Worker:
    """An idle worker before a busy one."""
    serving = [worker for worker in workers if worker.status in SERVING and worker.url]
    serving.sort(key=lambda worker: worker.status != WorkerStatus.IDLE)
    if serving:
        return serving[0]
    if workers:
        states = ", ".join(f"{worker.id} is {worker.status}" for worker in workers)
        reasons = [problem(worker.id, worker.last_error) for worker in workers if worker.last_error]
        raise Failed("\n".join([f"no worker serves ({states}): see 'llama-orch workers list'", *reasons]))
    raise Failed("no worker runs there: start one with 'llama-orch workers start MODEL'")


def _converse(
    find: Callable[[], Coroutine[Any, Any, _Partner]], messages: list[ChatMessage], options: dict[str, Any]
) -> None:
    partner: _Partner | None = run(find())
    line(f"Talking to {partner.url}. Ctrl-C stops an answer, Ctrl-D ends.", style="dim", console=err)
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
            # One that was lost may be back elsewhere.
            partner = partner or asyncio.run(find())
            answer = _run_answer(partner, asked)
        except (ApiError, Failed, Unusable) as error:
            if isinstance(error, NoAnswer | Failed):
                partner = None
            tell_any(error)
            continue
        if answer:
            messages = [*asked.messages, ChatMessage(role="assistant", content=answer.text)]


def _run_answer(partner: _Partner, asked: ChatRequest) -> Answer | None:
    try:
        return asyncio.run(_print_answer(partner, asked))
    except KeyboardInterrupt:
        line("\n(stopped)", style="dim", console=err)
        return None
