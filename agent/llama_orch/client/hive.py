"""Client of a hive."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from llama_orch.contract import devices, hive
from llama_orch.contract import operations as ops
from llama_orch.contract.common import HiveHealth

from .service import STREAM_SILENCE_SECONDS, Service


class Hive(Service):
    """The agent of one machine: models, workers, devices."""

    part = "hive"

    async def health(self) -> HiveHealth:
        """Whether it is alive, with its worker counts; needs no token."""
        return await self._ask(ops.HIVE_HEALTH, HiveHealth)

    async def info(self) -> hive.HiveInfo:
        """Which hive this is."""
        return await self._ask(ops.HIVE_INFO, hive.HiveInfo)

    async def devices(self) -> devices.Devices:
        """CPU, memory, disk and GPUs, read at this moment."""
        return await self._ask(ops.DEVICES, devices.Devices)

    async def list_models(self) -> list[hive.Model]:
        """Models on this hive."""
        return (await self._ask(ops.LIST_MODELS, hive.ModelList)).models

    async def delete_model(self, model_ref: str, filename: str | None = None) -> hive.Model:
        """Delete a model's files; raises Conflict while a worker uses it."""
        query = {"model_ref": model_ref} | ({"filename": filename} if filename else {})
        return await self._ask(ops.DELETE_MODEL, hive.Model, query=query)

    async def download_model(self, request: hive.DownloadRequest) -> hive.Download:
        """Begin a download, or join the one that is under way."""
        return await self._ask(ops.DOWNLOAD_MODEL, hive.Download, body=request)

    async def list_downloads(self) -> list[hive.Download]:
        """Downloads under way and ended."""
        return (await self._ask(ops.LIST_DOWNLOADS, hive.DownloadList)).downloads

    async def get_download(self, download_id: str) -> hive.Download:
        """One download; raises NotFound."""
        return await self._ask(ops.GET_DOWNLOAD, hive.Download, download_id=download_id)

    async def download_events(self, download_id: str) -> AsyncGenerator[hive.Download, None]:
        """The download's progress until it ends."""
        async for data in self._stream(ops.DOWNLOAD_EVENTS, silence=STREAM_SILENCE_SECONDS, download_id=download_id):
            yield self._parse(hive.Download, data)

    async def cancel_download(self, download_id: str) -> hive.Download:
        """Cancel a download."""
        return await self._ask(ops.CANCEL_DOWNLOAD, hive.Download, download_id=download_id)

    async def list_workers(self) -> list[hive.Worker]:
        """All workers."""
        return (await self._ask(ops.LIST_WORKERS, hive.WorkerList)).workers

    async def spawn_worker(self, request: hive.SpawnRequest) -> hive.Worker:
        """Start a worker; its model is downloaded first where it is not there."""
        return await self._ask(ops.SPAWN_WORKER, hive.Worker, body=request)

    async def get_worker(self, worker_id: str) -> hive.Worker:
        """One worker; raises NotFound."""
        return await self._ask(ops.GET_WORKER, hive.Worker, worker_id=worker_id)

    async def stop_worker(self, worker_id: str, *, timeout: float = 90.0) -> hive.Worker:
        """Drain, stop and forget a worker; answers it as it ended. Draining may take most of `timeout` seconds."""
        return await self._ask(ops.STOP_WORKER, hive.Worker, timeout=timeout, worker_id=worker_id)
