"""`llama-orch models`: what lies on a hive's disk."""

from __future__ import annotations

from typing import Annotated

import typer

from llama_orch.contract.hive import Download, DownloadRequest, DownloadStatus, Model

from .connection import Connection, HiveOption, JsonOption, QueenOption, TokenFileOption
from .output import err, line, print_json, print_table, size
from .running import Failed, request, run
from .watching import ENDED_DOWNLOAD, follow_download, problem

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Models on a hive: list, pull, remove.")

RefArgument = Annotated[str, typer.Argument(metavar="MODEL", help="hf:org/repo[@revision][::file=NAME.gguf]")]
FileOption = Annotated[str | None, typer.Option("--file", metavar="NAME.gguf", help="Which file of the repository.")]


@app.command("list")
def list_models(
    *,
    hive: HiveOption = None,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List models, and downloads under way."""

    async def work() -> tuple[list[Model], list[Download]]:
        async with await Connection(queen, hive, token_file).open_hive() as client:
            return await client.list_models(), [] if as_json else await client.list_downloads()

    models, downloads = run(work())
    if as_json:
        print_json(models)
        return
    print_table(
        ("MODEL", "FILE", "SIZE", "STATUS", "WORKERS"),
        (
            (model.model_ref, model.filename, size(model.size_bytes), model.status.value, ", ".join(model.workers))
            for model in models
        ),
        nothing="No models yet. Get one: llama-orch models pull hf:org/repo",
    )
    for download in downloads:
        if download.status not in ENDED_DOWNLOAD:
            of = f" of {size(download.bytes_total)}" if download.bytes_total else ""
            name = download.filename or download.model_ref
            line(f"{download.status} {name}: {size(download.bytes_done)}{of} (download {download.download_id})")


@app.command("pull")
def pull(
    model: RefArgument,
    *,
    file: FileOption = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Begin it and return.")] = False,
    hive: HiveOption = None,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download a model to the hive; without a file name the hive picks the quantisation and says which."""
    body = request(DownloadRequest, model_ref=model, filename=file)

    async def work() -> Download:
        async with await Connection(queen, hive, token_file).open_hive() as client:
            begun = await client.download_model(body)
            if begun.chosen_because:
                line(f"{begun.filename}: {begun.chosen_because}", console=err)
            if no_wait:
                return begun
            ended = begun if begun.status in ENDED_DOWNLOAD else await follow_download(client, begun)
            if ended.status != DownloadStatus.READY:
                raise Failed(problem(f"the download of {model} {ended.status}", ended.error))
            return ended

    download = run(work())
    if as_json:
        print_json(download)
    elif download.status == DownloadStatus.READY:
        line(f"{download.filename or model} is ready ({size(download.bytes_total or download.bytes_done)})")
    else:
        line(f"{download.filename or model} is {download.status}: download {download.download_id}")


@app.command("cancel")
def cancel(
    download: Annotated[str, typer.Argument(metavar="DOWNLOAD", help="The download's id, see 'models list'.")],
    *,
    hive: HiveOption = None,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a download."""

    async def work() -> Download:
        async with await Connection(queen, hive, token_file).open_hive() as client:
            return await client.cancel_download(download)

    ended = run(work())
    if as_json:
        print_json(ended)
    else:
        line(f"The download of {ended.filename or ended.model_ref} is {ended.status}")


@app.command("remove")
def remove(
    model: RefArgument,
    *,
    file: FileOption = None,
    hive: HiveOption = None,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a model's files; a model that a worker uses stays."""

    async def work() -> Model:
        async with await Connection(queen, hive, token_file).open_hive() as client:
            return await client.delete_model(model, file)

    gone = run(work())
    if as_json:
        print_json(gone)
    else:
        line(f"{gone.filename} of {gone.model_ref} is deleted ({size(gone.size_bytes)})")
