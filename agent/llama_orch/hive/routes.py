"""The hive's operations: parse, call one thing, shape the answer."""

from __future__ import annotations

from sanic import Request

from llama_orch.contract import operations as ops
from llama_orch.contract.common import HiveHealth
from llama_orch.contract.devices import Devices
from llama_orch.contract.hive import (
    Download,
    DownloadList,
    DownloadRequest,
    HiveInfo,
    Model,
    ModelList,
    SpawnRequest,
    Worker,
    WorkerList,
)
from llama_orch.web.app import Routes
from llama_orch.web.events import EventStream

from .agent import Agent

routes = Routes(ops.HIVE)


def _agent(request: Request) -> Agent:
    return request.app.ctx.agent


@routes.handle(ops.HIVE_HEALTH)
async def health(request: Request) -> HiveHealth:
    """Is the hive alive."""
    return HiveHealth(workers=await _agent(request).counts())


@routes.handle(ops.HIVE_INFO)
async def info(request: Request) -> HiveInfo:
    """Which hive this is."""
    return _agent(request).info()


@routes.handle(ops.DEVICES)
async def devices(request: Request) -> Devices:
    """What the machine has."""
    return await _agent(request).devices()


@routes.handle(ops.LIST_MODELS)
async def list_models(request: Request) -> ModelList:
    """All models."""
    return ModelList(models=await _agent(request).models.all())


@routes.handle(ops.DELETE_MODEL)
async def delete_model(request: Request) -> Model:
    """Delete a model's files."""
    return await _agent(request).models.delete(request.args.get("model_ref"), request.args.get("filename"))


@routes.handle(ops.DOWNLOAD_MODEL)
async def download_model(request: Request, body: DownloadRequest) -> Download:
    """Begin a download, or answer the one there is."""
    return (await _agent(request).downloads.request(body.ref, body.origin)).view()


@routes.handle(ops.LIST_DOWNLOADS)
async def list_downloads(request: Request) -> DownloadList:
    """All downloads."""
    return DownloadList(downloads=[download.view() for download in _agent(request).downloads.all()])


@routes.handle(ops.GET_DOWNLOAD)
async def get_download(request: Request, download_id: str) -> Download:
    """One download."""
    return _agent(request).downloads.get(download_id).view()


@routes.handle(ops.DOWNLOAD_EVENTS)
async def download_events(request: Request, download_id: str) -> EventStream:
    """A download's progress until it ends."""
    return EventStream(_agent(request).downloads.events(download_id))


@routes.handle(ops.CANCEL_DOWNLOAD)
async def cancel_download(request: Request, download_id: str) -> Download:
    """End a download."""
    return (await _agent(request).downloads.cancel(download_id)).view()


@routes.handle(ops.LIST_WORKERS)
async def list_workers(request: Request) -> WorkerList:
    """All workers."""
    return WorkerList(workers=[keeper.view() for keeper in await _agent(request).workers.all()])


@routes.handle(ops.SPAWN_WORKER)
async def spawn_worker(request: Request, body: SpawnRequest) -> Worker:
    """Start a worker."""
    return await _agent(request).workers.spawn(body)


@routes.handle(ops.GET_WORKER)
async def get_worker(request: Request, worker_id: str) -> Worker:
    """One worker."""
    return await _agent(request).workers.get(worker_id)


@routes.handle(ops.STOP_WORKER)
async def stop_worker(request: Request, worker_id: str) -> Worker:
    """Drain, stop and forget a worker."""
    return await _agent(request).workers.stop_worker(worker_id)
