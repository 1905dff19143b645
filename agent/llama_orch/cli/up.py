"""`llama-orch up`: queen, hive, model and worker on this machine, without root, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from llama_orch.client import Hive, NoAnswer

from .connection import read_token
from .devices import show_engine
from .first_answer import DEFAULT_MODEL, ask, ask_hub, get_model, seems_here, start_worker
from .keep_up import keep_up, step
from .local import Home
from .lost_worker import explain
from .output import line
from .running import run

WORKER_NAME = "up"


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


async def _story(home: Home, model: str | None) -> None:
    for left in await asyncio.to_thread(home.end_leftovers):
        line(f"Ended {left}, left by an earlier run that could not stop", style="yellow")
    home.prepare()
    home.prepare_this_machine()
    # A hub that is out of reach may be silent for seconds, in which hive and queen start.
    hub_asked: asyncio.Task[str | None] | None = None
    if model is None and not seems_here(home.folder / "models", DEFAULT_MODEL):
        hub_asked = asyncio.create_task(ask_hub(DEFAULT_MODEL))
    try:
        with step("Starting hive and queen"):
            children = await home.start("hive", "queen")
        for child in children:
            line(f"{child.name.capitalize():6} {child.url}   log {child.log}")
        home.announce()
        async with home.hive() as hive:
            chosen = await get_model(hive, model, home.folder / "models-demo", hub_asked)
            worker = await start_worker(hive, chosen, name=WORKER_NAME)
            show_engine((await hive.devices()).engine)
    finally:
        if hub_asked is not None:
            hub_asked.cancel()
    line(f"Worker {worker.url}   {worker.filename or worker.model_ref} on {worker.backend}, {worker.slots} slots")
    line()

    async def open_hive() -> Hive:
        return home.hive()

    try:
        await ask(str(worker.url), read_token(home.inference_token_file), chosen.question)
    except NoAnswer as error:
        line()
        raise await explain(error, open_hive, str(worker.url), worker) from None
    _how_to_go_on(home, str(worker.url))


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
    line(
        "This machine is the queen's node local. She installs nothing on it and never reboots it, whatever sudo allows,"
    )
    line("but where LLAMA_ORCH_QUEEN_CHANGE_OWN_MACHINE=true is set.")
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
