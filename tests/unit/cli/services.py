"""A queen, a hive and a worker that hold everything in memory: real applications on real sockets, with the
contract's every route, for tests of whoever calls them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from sanic import Request

from llama_orch.base.tokens import Token
from llama_orch.contract import devices, hive, inference, queen
from llama_orch.contract import operations as ops
from llama_orch.contract.common import HiveHealth, Problem, QueenHealth, WorkerCounts
from llama_orch.contract.errors import BadRequest, Busy, Conflict, NotFound
from llama_orch.web.app import Routes, create_app
from llama_orch.web.events import EventStream
from tests.support.serving import serving

TOKEN = "the-api-token-of-this-test"
INFERENCE_TOKEN = "the-inference-token-of-this-test"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WORDS = ("Hello", " there,", " tester.")
DEVICES = devices.Devices(
    cpu=devices.CpuInfo(model="A CPU", cores=2, load_1m=0.5),
    memory=devices.MemoryInfo(total_bytes=8 << 30, available_bytes=4 << 30),
    disk=devices.MemoryInfo(total_bytes=100 << 30, available_bytes=50 << 30),
    nvml=devices.GpuStatus(available=False, reason="libnvidia-ml.so.1 is not there"),
    gpus=[],
    engine=devices.EngineStatus(
        build="b",
        tested_at=NOW,
        cpu_library="libggml-cpu-haswell.so",
        libraries=[
            devices.EngineLibrary(
                file="libggml-cpu-skylakex.so",
                name="skylakex",
                backend="cpu",
                result=devices.LibraryResult.DIED,
                reason="ended by signal 4 (SIGILL)",
            ),
            devices.EngineLibrary(
                file="libggml-cpu-haswell.so", name="haswell", backend="cpu", result=devices.LibraryResult.PASSED
            ),
        ],
    ),
)


@dataclass
class Fleet:
    """What the services hold, and every request body and correlation id that they saw."""

    nodes: dict[str, queen.Node] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    # However many a client asks for, no page has more.
    page: int = queen.LARGEST_PAGE
    pages_asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    cursor_stays: bool = False
    jobs: dict[str, queen.Job] = field(default_factory=dict)
    events: dict[str, list[queen.JobEvent]] = field(default_factory=dict)
    models: list[hive.Model] = field(default_factory=list)
    downloads: dict[str, hive.Download] = field(default_factory=dict)
    workers: dict[str, hive.Worker] = field(default_factory=dict)
    bodies: list[BaseModel] = field(default_factory=list)
    correlation_ids: list[str] = field(default_factory=list)
    job_ends_as: queen.JobStatus = queen.JobStatus.SUCCEEDED
    cut_events_after: int | None = None
    worker_fails: Problem | None = None
    busy: bool = False
    cut_answer: bool = False
    on_cut: Callable[[], None] = lambda: None
    on_list: Callable[[], None] = lambda: None
    worker_steps: list[dict[str, Any]] = field(default_factory=list)
    urls: dict[str, str] = field(default_factory=dict)

    def add_node(self, name: str, **fields: Any) -> queen.Node:
        """Put a node in as if it had been there before."""
        self.nodes[name] = a_node(name, **fields)
        return self.nodes[name]

    def add_job(self, node_name: str) -> queen.Job:
        """A provision job that is queued, with a story to tell."""
        job_id = f"job-{len(self.jobs) + 1}"
        self.jobs[job_id] = queen.Job(
            job_id=job_id,
            kind="provision",
            node_name=node_name,
            status=queen.JobStatus.QUEUED,
            percentage=0,
            created_at=NOW,
            started_at=None,
            ended_at=None,
            error=None,
            correlation_id="c-1",
        )
        story: list[dict[str, Any]] = [
            {"kind": "play", "play": "Make it a hive", "percentage": 5},
            {"kind": "task", "task": "Install packages", "outcome": "started", "percentage": 10},
            {"kind": "task", "task": "Install packages", "outcome": "changed", "duration_s": 1.5, "percentage": 50},
            {"kind": "task", "task": "Start the hive", "outcome": "ok", "duration_s": 0.2, "percentage": 99},
        ]
        self.events[job_id] = [queen.JobEvent(seq=n, at=NOW, **event) for n, event in enumerate(story, 1)]
        return self.jobs[job_id]

    def end_job(self, job_id: str) -> None:
        """Bring the job to its end, as `job_ends_as` says."""
        failed = self.job_ends_as == queen.JobStatus.FAILED
        error = Problem(
            code="task_failed",
            message="no space left on device",
            what_to_do="Free 2 GiB on /opt.",
            task="Install packages",
            host="n1",
        )
        update = {"status": self.job_ends_as, "percentage": 100.0, "error": error if failed else None}
        self.jobs[job_id] = self.jobs[job_id].model_copy(update=update)


def a_node(name: str, **fields: Any) -> queen.Node:
    values: dict[str, Any] = {
        "node_name": name, "ssh_host": "192.0.2.7", "ssh_port": 22, "ssh_user": "root", "status": "registered",
        "labels": {}, "job_id": None, "last_seen": None, "last_error": None, "host_key": None, "hive": None,
    }  # fmt: skip
    return queen.Node(**(values | fields))


def a_worker(worker_id: str, **fields: Any) -> hive.Worker:
    values: dict[str, Any] = {
        "id": worker_id, "name": None, "model_ref": "hf:o/r", "filename": "m.gguf", "backend": "cpu", "device": 0,
        "slots": 1, "slots_busy": 0, "ctx_per_slot": 2048, "status": "idle", "url": None, "pid": 1, "started_at": NOW,
        "restarts": 0, "memory_estimated_bytes": 1 << 30, "last_error": None,
    }  # fmt: skip
    return hive.Worker(**(values | fields))


def a_download(download_id: str, **fields: Any) -> hive.Download:
    values: dict[str, Any] = {
        "download_id": download_id, "model_ref": "hf:o/r", "filename": "m-Q4_K_M.gguf", "status": "downloading",
        "bytes_done": 0, "bytes_total": 1000, "bytes_per_second": 100.0, "percentage": 0.0,
        "chosen_because": "Q4_K_M of 3 quantisations",
    }  # fmt: skip
    return hive.Download(**(values | fields))


def queen_routes(fleet: Fleet) -> Routes:
    routes = Routes(ops.QUEEN)
    _add_node_routes(routes, fleet)

    def job_of(job_id: str) -> queen.Job:
        if job_id not in fleet.jobs:
            raise NotFound(f"there is no job {job_id}")
        return fleet.jobs[job_id]

    @routes.handle(ops.LIST_JOBS)
    async def list_jobs(request: Request) -> queen.JobList:
        wanted = request.args.get("node_name")
        ids = [j.job_id for j in reversed(fleet.jobs.values()) if wanted in (None, j.node_name)]
        ids, following = _page(fleet, request, ids)
        return queen.JobList(jobs=[fleet.jobs[job_id] for job_id in ids], next_cursor=following)

    @routes.handle(ops.GET_JOB)
    async def get_job(_: Request, job_id: str) -> queen.Job:
        return job_of(job_id)

    @routes.handle(ops.JOB_EVENTS)
    async def job_events(_: Request, job_id: str) -> EventStream:
        async def story() -> AsyncIterator[queen.JobEvent]:
            for number, event in enumerate(fleet.events[job_of(job_id).job_id]):
                if number == fleet.cut_events_after:
                    fleet.cut_events_after = None
                    return
                yield event
            fleet.end_job(job_id)

        return EventStream(story())

    @routes.handle(ops.CANCEL_JOB)
    async def cancel_job(_: Request, job_id: str) -> queen.Job:
        fleet.jobs[job_id] = job_of(job_id).model_copy(update={"status": queen.JobStatus.CANCELLED})
        return fleet.jobs[job_id]

    return routes


def _page(fleet: Fleet, request: Request, names: list[str]) -> tuple[list[str], str | None]:
    limit, cursor = request.args.get("limit"), request.args.get("cursor")
    fleet.pages_asked.append((limit, cursor))
    most = min(fleet.page, int(limit or queen.LARGEST_PAGE))
    begin = 0 if cursor is None else names.index(cursor) + 1
    if fleet.cursor_stays:
        return names[:most], names[0]
    found = names[begin : begin + most]
    return found, found[-1] if begin + most < len(names) else None


def _add_node_routes(routes: Routes, fleet: Fleet) -> None:
    def node_of(name: str) -> queen.Node:
        if name not in fleet.nodes:
            raise NotFound(f"there is no node {name}")
        return fleet.nodes[name]

    @routes.handle(ops.QUEEN_HEALTH)
    async def health(_: Request) -> QueenHealth:
        return QueenHealth(version="0.1.0")

    @routes.handle(ops.LIST_NODES)
    async def list_nodes(request: Request) -> queen.NodeList:
        fleet.correlation_ids.append(request.ctx.correlation_id)
        names = sorted(fleet.nodes)
        names, following = _page(fleet, request, names)
        return queen.NodeList(
            nodes=[fleet.nodes[name] for name in names], problems=fleet.problems, next_cursor=following
        )

    @routes.handle(ops.CREATE_NODE)
    async def create(_: Request, body: queen.NodeCreate) -> queen.Node:
        fleet.bodies.append(body)
        if body.node_name in fleet.nodes:
            raise Conflict(f"node {body.node_name} is there already", job_id="job-1")
        job = fleet.add_job(body.node_name)
        return fleet.add_node(body.node_name, ssh_host=body.ssh_host, job_id=job.job_id, labels=body.labels)

    @routes.handle(ops.GET_NODE)
    async def get_node(_: Request, node_name: str) -> queen.Node:
        return node_of(node_name)

    @routes.handle(ops.DELETE_NODE)
    async def delete_node(request: Request, node_name: str) -> queen.Job:
        node_of(node_name)
        if node_name == "gone" and request.args.get("force") != "true":
            raise Conflict("its host cannot be reached: use force")
        return fleet.add_job(node_name)

    @routes.handle(ops.PROVISION_NODE)
    async def provision(_: Request, node_name: str, body: queen.ProvisionRequest) -> queen.Job:
        fleet.bodies.append(body)
        return fleet.add_job(node_of(node_name).node_name)

    @routes.handle(ops.REMEDY_NODE)
    async def remedy(_: Request, node_name: str, body: queen.RemedyRequest) -> queen.Job:
        fleet.bodies.append(body)
        return fleet.add_job(node_of(node_name).node_name)

    @routes.handle(ops.SSH_KEY)
    async def ssh_key(_: Request) -> queen.SshKey:
        return queen.SshKey(public_key="ssh-ed25519 AAAA", fingerprint="SHA256:x")


def hive_routes(fleet: Fleet) -> Routes:
    routes = Routes(ops.HIVE)
    _add_model_routes(routes, fleet)

    @routes.handle(ops.HIVE_HEALTH)
    async def health(_: Request) -> HiveHealth:
        return HiveHealth(workers=WorkerCounts(total=0, idle=0, busy=0))

    @routes.handle(ops.HIVE_INFO)
    async def info(_: Request) -> hive.HiveInfo:
        return hive.HiveInfo(hive_id="h", version="0.1.0", pid=1, started_at=NOW, boot_id="b")

    @routes.handle(ops.DEVICES)
    async def devices(_: Request) -> devices.Devices:
        return DEVICES

    @routes.handle(ops.LIST_WORKERS)
    async def list_workers(_: Request) -> hive.WorkerList:
        fleet.on_list()
        return hive.WorkerList(workers=list(fleet.workers.values()))

    @routes.handle(ops.SPAWN_WORKER)
    async def spawn(_: Request, body: hive.SpawnRequest) -> hive.Worker:
        fleet.bodies.append(body)
        if body.backend == "cuda":
            raise BadRequest("backend: this hive has no GPU")
        worker = a_worker("w1", model_ref=body.model_ref, status="loading", percentage=10.0, name=body.name)
        fleet.workers[worker.id] = worker
        return worker

    @routes.handle(ops.GET_WORKER)
    async def get_worker(_: Request, worker_id: str) -> hive.Worker:
        worker = fleet.workers.get(worker_id)
        if worker is None:
            raise NotFound(f"there is no worker {worker_id}")
        status = "failed" if fleet.worker_fails else "idle"
        update = {"status": hive.WorkerStatus(status), "last_error": fleet.worker_fails, "url": fleet.urls["worker"]}
        update |= fleet.worker_steps.pop(0) if fleet.worker_steps else {}
        fleet.workers[worker_id] = worker.model_copy(update=update)
        return fleet.workers[worker_id]

    @routes.handle(ops.STOP_WORKER)
    async def stop_worker(_: Request, worker_id: str) -> hive.Worker:
        if worker_id not in fleet.workers:
            raise NotFound(f"there is no worker {worker_id}")
        return fleet.workers.pop(worker_id).model_copy(update={"status": hive.WorkerStatus.STOPPED})

    return routes


def _add_model_routes(routes: Routes, fleet: Fleet) -> None:
    @routes.handle(ops.LIST_MODELS)
    async def list_models(_: Request) -> hive.ModelList:
        return hive.ModelList(models=fleet.models)

    @routes.handle(ops.DELETE_MODEL)
    async def delete_model(request: Request) -> hive.Model:
        for model in fleet.models:
            if model.model_ref == request.args.get("model_ref"):
                fleet.models.remove(model)
                return model
        raise NotFound("no such model on this hive")

    @routes.handle(ops.DOWNLOAD_MODEL)
    async def download_model(_: Request, body: hive.DownloadRequest) -> hive.Download:
        fleet.bodies.append(body)
        fleet.downloads["d1"] = a_download("d1", model_ref=body.model_ref)
        return fleet.downloads["d1"]

    @routes.handle(ops.LIST_DOWNLOADS)
    async def list_downloads(_: Request) -> hive.DownloadList:
        return hive.DownloadList(downloads=list(fleet.downloads.values()))

    @routes.handle(ops.GET_DOWNLOAD)
    async def get_download(_: Request, download_id: str) -> hive.Download:
        return fleet.downloads[download_id]

    @routes.handle(ops.DOWNLOAD_EVENTS)
    async def download_events(_: Request, download_id: str) -> EventStream:
        async def progress() -> AsyncIterator[hive.Download]:
            for done in (100, 500, 1000):
                status = "ready" if done == 1000 else "downloading"
                fleet.downloads[download_id] = a_download(download_id, bytes_done=done, status=status)
                yield fleet.downloads[download_id]

        return EventStream(progress())

    @routes.handle(ops.CANCEL_DOWNLOAD)
    async def cancel_download(_: Request, download_id: str) -> hive.Download:
        if download_id not in fleet.downloads:
            raise NotFound(f"there is no download {download_id}")
        return a_download(download_id, status="cancelled")


def worker_routes(fleet: Fleet) -> Routes:
    routes = Routes(ops.WORKER)
    usage = inference.Usage(prompt_tokens=1, completion_tokens=len(WORDS), total_tokens=1 + len(WORDS))

    @routes.handle(ops.WORKER_HEALTH)
    async def health(_: Request) -> inference.WorkerHealth:
        return inference.WorkerHealth(status="idle", worker_id="w1", percentage=100, slots=1, slots_busy=0)

    @routes.handle(ops.SERVED_MODELS)
    async def models(_: Request) -> inference.ServedModelList:
        return inference.ServedModelList(data=[inference.ServedModel(id="m", created=1, context_per_slot=64, slots=1)])

    @routes.handle(ops.SERVED_MODEL)
    async def model(_: Request, model: str) -> inference.ServedModel:
        return inference.ServedModel(id=unquote(model), created=1, context_per_slot=64, slots=1)

    @routes.handle(ops.COMPLETIONS)
    async def completions(_: Request, body: inference.CompletionRequest) -> BaseModel | EventStream:
        def completion(text: str) -> inference.Completion:
            choice = inference.CompletionChoice(text=text, finish_reason=None)
            return inference.Completion(id="c", created=1, model="m", choices=[choice], usage=usage)

        async def pieces() -> AsyncIterator[BaseModel | str]:
            for word in WORDS:
                yield completion(word)
            yield "[DONE]"

        return EventStream(pieces()) if body.stream else completion("".join(WORDS))

    @routes.handle(ops.EMBEDDINGS)
    async def embed(_: Request, body: inference.EmbeddingRequest) -> inference.EmbeddingList:
        vectors = [inference.Embedding(index=index, embedding=[0.6, 0.8]) for index in range(len(body.inputs))]
        return inference.EmbeddingList(model="m", data=vectors, usage=usage)

    @routes.handle(ops.TOKENIZE)
    async def tokenize(_: Request, body: inference.TokenizeRequest) -> inference.Tokens:
        tokens = list((body.prompt or "").encode())
        return inference.Tokens(tokens=tokens, count=len(tokens), context_per_slot=512)

    @routes.handle(ops.CHAT_COMPLETIONS)
    async def chat(request: Request, body: inference.ChatRequest) -> BaseModel | EventStream:
        fleet.bodies.append(body)
        if fleet.busy:
            raise Busy("all slots are taken", headers={"Retry-After": "3"})
        if not body.stream:
            if fleet.cut_answer:
                fleet.on_cut()
                assert request.transport is not None
                request.transport.close()
            message = inference.ChatAnswer(content="".join(WORDS))
            choice = inference.ChatChoice(message=message, finish_reason="stop")
            return inference.ChatCompletion(id="c", created=1, model="m", choices=[choice], usage=usage)

        async def pieces() -> AsyncIterator[BaseModel | str]:
            for word in WORDS:
                delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                yield inference.ChatChunk(id="c", created=1, model="m", choices=[delta])
                await asyncio.sleep(0)
            if fleet.cut_answer:
                fleet.on_cut()
                return
            yield inference.ChatChunk(id="c", created=1, model="m", choices=[], usage=usage)
            yield "[DONE]"

        return EventStream(pieces())

    return routes


@contextlib.asynccontextmanager
async def serve_fleet() -> AsyncIterator[Fleet]:
    """A fleet whose three services answer at `fleet.urls`."""
    fleet = Fleet()
    parts = (("queen", queen_routes, TOKEN), ("hive", hive_routes, TOKEN), ("worker", worker_routes, INFERENCE_TOKEN))
    async with contextlib.AsyncExitStack() as stack:
        for part, routes, token in parts:
            app = create_app(part, part, routes(fleet), token=Token(token), registry=CollectorRegistry())
            fleet.urls[part] = await stack.enter_async_context(serving(app))
        yield fleet
