"""`llama-orch jobs`: what the queen does and did."""

from __future__ import annotations

from typing import Annotated

import typer

from llama_orch.client import Queen
from llama_orch.contract.errors import NotFound
from llama_orch.contract.queen import Job, JobStatus

from .connection import Connection, JsonOption, QueenOption, TokenFileOption
from .output import ago, line, print_json, print_json_line, print_table
from .running import Failed, run
from .watching import ENDED_JOB, follow_job, problem

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Jobs of the queen: list, watch, cancel.")

JobArgument = Annotated[str, typer.Argument(metavar="JOB|NODE", help="A job's id, or a node for its newest job.")]


@app.command("list")
def list_jobs(
    node: Annotated[str | None, typer.Option("--node", metavar="NAME", help="Of this node only.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The newest so many.")] = 200,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""

    async def work() -> list[Job]:
        async with Connection(queen, None, token_file).open_queen() as client:
            return await client.list_jobs(node, most=limit)

    jobs = run(work())
    if as_json:
        print_json(jobs)
        return
    print_table(("JOB", "KIND", "NODE", "STATUS", "%", "CREATED", "ERROR"), map(_row, jobs), nothing="No jobs yet.")


def _row(job: Job) -> tuple[str | None, ...]:
    why = job.error.message if job.error else None
    return job.job_id, job.kind, job.node_name, job.status.value, f"{job.percentage:.0f}", ago(job.created_at), why


@app.command("watch")
def watch(
    job: JobArgument, queen: QueenOption = None, token_file: TokenFileOption = None, as_json: JsonOption = False
) -> None:
    """Follow a job from its first line until it ends; status 1 where it fails. --json: one event a line."""

    async def work() -> Job:
        async with Connection(queen, None, token_file).open_queen() as client:
            found = await _find(client, job)
            return await follow_job(client, found, on_event=print_json_line if as_json else None)

    ended = run(work())
    if ended.status != JobStatus.SUCCEEDED:
        run(_fail(ended))
    if not as_json:
        line(f"{ended.kind} of {ended.node_name} {ended.status}")


async def _fail(job: Job) -> None:
    raise Failed(problem(f"{job.kind} of {job.node_name} {job.status}", job.error))


@app.command("cancel")
def cancel(
    job: JobArgument, queen: QueenOption = None, token_file: TokenFileOption = None, as_json: JsonOption = False
) -> None:
    """Cancel an open job."""

    async def work() -> Job:
        async with Connection(queen, None, token_file).open_queen() as client:
            return await client.cancel_job((await _find(client, job, open_only=True)).job_id)

    cancelled = run(work())
    if as_json:
        print_json(cancelled)
    else:
        line(f"{cancelled.kind} of {cancelled.node_name} is {cancelled.status}")


async def _find(client: Queen, name: str, *, open_only: bool = False) -> Job:
    """The job of that id; where there is none, the newest (or the open) job of the node of that name."""
    try:
        return await client.get_job(name)
    except NotFound:
        jobs = await client.list_jobs(name)
    mine = [job for job in jobs if not (open_only and job.status in ENDED_JOB)]
    if not mine:
        raise Failed(
            f"there is no {'open ' if open_only else ''}job {name}, and none of a node {name}: see 'jobs list'"
        )
    return mine[0]
