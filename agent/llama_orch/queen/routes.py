"""Thin: each handler calls one thing and shapes its answer."""

from __future__ import annotations

import re
from collections.abc import Callable

from sanic import Request

from llama_orch import __version__
from llama_orch.contract import operations as ops
from llama_orch.contract.common import QueenHealth
from llama_orch.contract.errors import BadRequest, NotFound
from llama_orch.contract.queen import (
    LARGEST_PAGE,
    Job,
    JobList,
    Node,
    NodeCreate,
    ProvisionRequest,
    RemedyRequest,
    SshKey,
)
from llama_orch.web.app import Routes
from llama_orch.web.events import EventStream
from llama_orch.web.rendered import Rendered

from .queen import Queen
from .records import JobCursor

# How many are on a page where only a cursor is given, and how many jobs where nothing is.
_PAGE = 200


def build(queen_of: Callable[[Request], Queen]) -> Routes:
    """Every operation of the queen, bound to what `queen_of` gives for a request."""
    routes = Routes(ops.QUEEN)
    _nodes(routes, queen_of)
    _jobs(routes, queen_of)

    @routes.handle(ops.QUEEN_HEALTH)
    async def health(_request: Request) -> QueenHealth:
        return QueenHealth(version=__version__)

    @routes.handle(ops.SSH_KEY)
    async def ssh_key(request: Request) -> SshKey:
        return queen_of(request).ssh_key

    return routes


def _nodes(routes: Routes, queen_of: Callable[[Request], Queen]) -> None:
    @routes.handle(ops.LIST_NODES)
    async def list_nodes(request: Request) -> Rendered:
        pages = queen_of(request).pages
        limit, cursor = _limit(request), request.args.get("cursor")
        if limit is None and cursor is None:
            return Rendered(await pages.whole())
        return Rendered(await pages.page(limit or _PAGE, cursor or ""))

    @routes.handle(ops.CREATE_NODE)
    async def create_node(request: Request, body: NodeCreate) -> Node:
        queen = queen_of(request)
        return await queen.nodes.register(body)

    @routes.handle(ops.GET_NODE)
    async def get_node(request: Request, node_name: str) -> Node:
        return await queen_of(request).nodes.get(node_name)

    @routes.handle(ops.DELETE_NODE)
    async def delete_node(request: Request, node_name: str) -> Job:
        queen = queen_of(request)
        force = _flag(request, "force")
        return await queen.nodes.delete(node_name, force=force)

    @routes.handle(ops.PROVISION_NODE)
    async def provision_node(request: Request, body: ProvisionRequest, node_name: str) -> Job:
        queen = queen_of(request)
        password = body.sudo_password.get_secret_value() if body.sudo_password else None
        return await queen.nodes.provision(node_name, password, body.host_key)

    @routes.handle(ops.REMEDY_NODE)
    async def remedy_node(request: Request, body: RemedyRequest, node_name: str) -> Job:
        queen = queen_of(request)
        return await queen.nodes.remedy(node_name, body)


def _jobs(routes: Routes, queen_of: Callable[[Request], Queen]) -> None:
    @routes.handle(ops.LIST_JOBS)
    async def list_jobs(request: Request) -> Rendered:
        limit, cursor = _limit(request), _job_cursor(request)
        jobs, following = await queen_of(request).store.jobs.page(request.args.get("node_name"), limit or _PAGE, cursor)
        found = JobList(jobs=[job.wire for job in jobs], next_cursor=None if following is None else str(following))
        # Who asks for no page gets no more than there was before there were any, unless there is more to be had.
        whole = limit is None and cursor is None and following is None
        return Rendered(found.model_dump_json(exclude={"next_cursor"} if whole else None).encode())

    @routes.handle(ops.GET_JOB)
    async def get_job(request: Request, job_id: str) -> Job:
        job = await queen_of(request).store.jobs.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id[:80]}; GET /api/v1/jobs lists them")
        return job.wire

    @routes.handle(ops.JOB_EVENTS)
    async def job_events(request: Request, job_id: str) -> EventStream:
        return EventStream(queen_of(request).events.stream(job_id))

    @routes.handle(ops.CANCEL_JOB)
    async def cancel_job(request: Request, job_id: str) -> Job:
        queen = queen_of(request)
        return await queen.jobs.cancel(job_id)


def _limit(request: Request) -> int | None:
    text = request.args.get("limit")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= LARGEST_PAGE:
        raise BadRequest(f"limit: give a whole number from 1 to {LARGEST_PAGE}")
    return int(text)


def _job_cursor(request: Request) -> JobCursor | None:
    text = request.args.get("cursor")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise BadRequest("cursor: give the next_cursor of the page before")
    return int(text)


def _flag(request: Request, name: str) -> bool:
    value = request.args.get(name, "false")
    if value not in {"true", "false"}:
        raise BadRequest(f"{name} must be true or false")
    return value == "true"
