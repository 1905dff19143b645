"""`llama-orch up`: queen, hive, model and worker on this machine, without root, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from llama_orch.contract.errors import ApiError

from .connection import Unusable, read_token
from .first_answer import ask, get_model, start_worker
from .local import Home
from .output import line, out
from .running import Failed, run, tell_any

WORKER_NAME = "up"
INTERRUPTED = 130


def up(
    folder: Annotated[Path, typer.Option("--dir", metavar="FOLDER", help="Where all of its state is.")] = Path(
        ".llama-orch"
    ),
    queen_port: Annotated[int, typer.Option(min=1, max=65535, envvar="LLAMA_ORCH_QUEEN_PORT")] = 8080,
    hive_port: Annotated[int, typer.Option(min=1, max=65535, envvar="LLAMA_ORCH_HIVE_PORT")] = 8081,
    model: Annotated[
        str | None, typer.Option(metavar="REF", help="hf:org/repo[::file=…] or file:/path.gguf; else a small one.")
    ] = None,
    exit_after_answer: Annotated[bool, typer.Option("--exit-after-answer", help="Stop after the answer.")] = False,
) -> None:
    """Start a queen and a hive on this machine, serve a small model and show one answer; Ctrl-C stops it all."""
    home = Home(folder.absolute().resolve(), queen_port, hive_port)

    async def story() -> None:
        await _story(home, model)

    raise typer.Exit(run(keep_up(home, story, exit_after_answer=exit_after_answer)))


async def keep_up(home: Home, story: Callable[[], Awaitable[None]], *, exit_after_answer: bool) -> int:
    """Run `story` in a locked home, then stay until a signal or the end of a child; stop everything.

    Returns the exit status. Raises Unusable where the home is held by another process or cannot be used.
    """
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            home.hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    with home.locked():
        try:
            return await _until_stopped(home, story, stop, exit_after_answer=exit_after_answer)
        finally:
            # From here on a signal means: faster.
            stop.set()
            with step("Stopping workers, hive and queen"):
                await home.stop()
            line("Stopped; nothing is left running.")


async def _until_stopped(
    home: Home, story: Callable[[], Awaitable[None]], stop: asyncio.Event, *, exit_after_answer: bool
) -> int:
    asked_to_stop = asyncio.ensure_future(stop.wait())
    telling = asyncio.ensure_future(story())
    watching: asyncio.Future[None] | None = None
    try:
        await asyncio.wait({asked_to_stop, telling}, return_when=asyncio.FIRST_COMPLETED)
        if not telling.done():
            line("\nInterrupted", style="yellow")
            return INTERRUPTED
        await telling
        if exit_after_answer:
            return 0
        watching = asyncio.ensure_future(home.watch())
        await asyncio.wait({asked_to_stop, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            await watching
    except (ApiError, Failed, Unusable) as error:
        # Told before the stop, since that takes a while.
        return tell_any(error)
    else:
        line()
        return 0
    finally:
        tasks: list[asyncio.Future[Any]] = [task for task in (asked_to_stop, telling, watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _story(home: Home, model: str | None) -> None:
    for left in await asyncio.to_thread(home.end_leftovers):
        line(f"Ended {left}, left by an earlier run that could not stop", style="yellow")
    home.prepare()
    with step("Starting the hive"):
        hive_child = await home.start_hive()
    line(f"Hive   {hive_child.url}   log {hive_child.log}")
    with step("Starting the queen"):
        queen_child = await home.start_queen()
    line(f"Queen  {queen_child.url}   log {queen_child.log}")
    home.announce()
    async with home.hive() as hive:
        chosen = await get_model(hive, model, home.folder / "models-demo")
        worker = await start_worker(hive, chosen, name=WORKER_NAME)
    line(f"Worker {worker.url}   {worker.filename or worker.model_ref} on {worker.backend}, {worker.slots} slots")
    line()
    await ask(str(worker.url), read_token(home.inference_token_file))
    _how_to_go_on(home, str(worker.url))


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """A spinner while something short is done; a line where there is no terminal."""
    if out.is_terminal:
        with out.status(text):
            yield
    else:
        line(f"{text} …")
        yield


def _how_to_go_on(home: Home, worker_url: str) -> None:
    api = _bearer(home.api_token_file)
    inference = _bearer(home.inference_token_file)
    chat = '{"messages": [{"role": "user", "content": "Hello"}], "stream": true}'
    command = _own_command()
    line()
    line("How to go on, from another terminal in this folder:", style="bold")
    for text in (
        f"{command} chat",
        f"{command} nodes list",
        f"{command} workers list",
        f"curl {api} http://127.0.0.1:{home.queen_port}/api/v1/nodes",
        f"curl {api} http://127.0.0.1:{home.hive_port}/api/v1/workers",
        f"curl -N {inference} -H 'Content-Type: application/json' -d '{chat}' {worker_url}/v1/chat/completions",
    ):
        line(f"  {text}")
    line(f"The api-token is in {home.api_token_file}, the inference token in {home.inference_token_file}.")
    line("Ctrl-C stops everything.", style="bold")


def _bearer(file: Path) -> str:
    return f'-H "Authorization: Bearer $(cat {shlex.quote(str(file))})"'


def _own_command() -> str:
    script = Path(sys.executable).with_name("llama-orch")
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m llama_orch.cli"
    with contextlib.suppress(ValueError):
        script = script.relative_to(Path.cwd())
    return shlex.quote(str(script))
