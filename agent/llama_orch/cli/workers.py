"""`llama-orch workers`: the processes that serve models on a hive."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from llama_orch.client import Hive
from llama_orch.contract.hive import SpawnRequest, Worker

from .connection import Connection, HiveOption, JsonOption, QueenOption, TokenFileOption
from .output import ago, err, line, print_json, print_table, size
from .running import Failed, request, run
from .watching import SERVING, follow_worker, problem

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Workers of a hive: list, start, stop.")


@app.command("list")
def list_workers(
    *,
    hive: HiveOption = None,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the workers with their state."""

    async def work() -> list[Worker]:
        async with await Connection(queen, hive, token_file).open_hive() as client:
            return await client.list_workers()

    workers = run(work())
    if as_json:
        print_json(workers)
        return
    print_table(
        ("ID", "NAME", "MODEL", "ON", "STATUS", "SLOTS", "TOKENS/S", "URL", "MEMORY", "STARTED", "RESTARTS"),
        (_row(worker) for worker in workers),
        nothing="No workers yet. Start one: llama-orch workers start MODEL",
    )
    for worker in workers:
        if worker.last_error:
            line(problem(worker.id, worker.last_error), style="red")


def _row(worker: Worker) -> tuple[str | None, ...]:
    return (
        worker.id,
        worker.name,
        worker.filename or worker.model_ref,
        worker.backend if worker.backend == "cpu" else f"{worker.backend} {','.join(map(str, worker.devices))}",
        worker.status.value,
        f"{worker.slots_busy}/{worker.slots}",
        f"{worker.tokens_per_second:.1f}",
        worker.url,
        size(worker.memory_estimated_bytes),
        ago(worker.started_at),
        str(worker.restarts),
    )


@app.command("start")
def start(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="hf:org/repo[@revision][::file=…] or file:/path.gguf")],
    *,
    file: Annotated[str | None, typer.Option("--file", metavar="NAME.gguf")] = None,
    backend: Annotated[str | None, typer.Option(help="cpu or cuda; cuda where the hive can.")] = None,
    device: Annotated[
        list[int] | None, typer.Option(help="Which GPU; several times to split the model over several.")
    ] = None,
    split_mode: Annotated[str | None, typer.Option(help="How it is split: layer or row.")] = None,
    tensor_split: Annotated[
        str | None, typer.Option(metavar="N,N", help="How much each gets; by default as they have memory.")
    ] = None,
    slots: Annotated[int, typer.Option(help="How many requests it serves at once.")] = 1,
    name: Annotated[str | None, typer.Option(help="With a name, the same call again starts nothing more.")] = None,
    ctx: Annotated[int | None, typer.Option("--ctx", help="Tokens of context for each slot.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads on the CPU.")] = None,
    gpu_layers: Annotated[int | None, typer.Option(help="Layers on the GPU; -1 is all.")] = None,
    reuse_across_scopes: Annotated[
        bool,
        typer.Option("--reuse-across-scopes", help="Clients reuse each other's prompts, and can tell what they were."),
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it to load.")] = 300.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return while it loads.")] = False,
    hive: HiveOption = None,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a worker and wait until it serves; its model is downloaded first where it is not there."""
    body = request(
        SpawnRequest,
        model_ref=model,
        filename=file,
        backend=backend or "cpu",
        **_placed(device, split_mode, tensor_split),
        slots=slots,
        name=name,
        ctx_per_slot=ctx,
        threads=threads,
        gpu_layers=gpu_layers,
        reuse_across_scopes=reuse_across_scopes,
    )

    async def work() -> Worker:
        async with await Connection(queen, hive, token_file).open_hive() as client:
            chosen = body if backend else body.model_copy(update={"backend": await _best_backend(client)})
            worker = await client.spawn_worker(chosen)
            return worker if no_wait else _serving(await follow_worker(client, worker, timeout=timeout))

    worker = run(work())
    if as_json:
        print_json(worker)
    else:
        line(f"Worker {worker.id} is {worker.status}" + (f" at {worker.url}" if worker.url else ""))


def _placed(device: list[int] | None, split_mode: str | None, tensor_split: str | None) -> dict[str, object]:
    """The request's fields on devices."""
    found: dict[str, object] = {"split_mode": split_mode}
    if device is not None:
        found |= {"device": device[0]} if len(device) == 1 else {"devices": device}
    if tensor_split is not None:
        try:
            found["tensor_split"] = [float(number) for number in tensor_split.split(",")]
        except ValueError:
            raise typer.BadParameter("--tensor-split: numbers with commas between them, such as 3,1") from None
    return found


async def _best_backend(client: Hive) -> str:
    devices = await client.devices()
    chosen = "cuda" if "cuda" in devices.backends else "cpu"
    line(f"backend: {chosen} (choose with --backend)", console=err)
    return chosen


def _serving(worker: Worker) -> Worker:
    if worker.status not in SERVING:
        raise Failed(problem(f"worker {worker.id} is {worker.status} and does not serve", worker.last_error))
    return worker


@app.command("stop")
def stop(
    workers: Annotated[list[str] | None, typer.Argument(metavar="WORKER…", help="Ids or names.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All workers of the hive.")] = False,
    hive: HiveOption = None,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drain and stop workers: running answers end first."""
    if bool(workers) == every:
        raise typer.BadParameter("name workers, or give --all")

    async def work() -> list[Worker]:
        async with await Connection(queen, hive, token_file).open_hive() as client:
            known = await client.list_workers()
            chosen = known if every else [_named(known, text) for text in workers or ()]
            return await asyncio.gather(*(client.stop_worker(worker.id) for worker in chosen))

    ended = run(work())
    if as_json:
        print_json(ended)
        return
    for worker in ended:
        line(f"Worker {worker.id} is {worker.status}")
    if not ended:
        line("No workers to stop.", console=err)


def _named(known: list[Worker], text: str) -> Worker:
    for worker in known:
        if text in (worker.id, worker.name):
            return worker
    raise Failed(f"there is no worker {text}: see 'llama-orch workers list'")
