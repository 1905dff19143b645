"""The hive agent as one object: its parts, their start and their stop."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry

from llama_orch import __version__
from llama_orch.base import files
from llama_orch.base.processes import boot_id, interpreter
from llama_orch.base.tokens import Token
from llama_orch.contract.common import WorkerCounts
from llama_orch.contract.devices import CpuInfo, Devices, MemoryInfo
from llama_orch.contract.hive import HiveInfo, WorkerStatus
from llama_orch.web import landlock

from .devices import engine_build, host_conditions, machine
from .devices.engine_test import EngineTest
from .devices.gpus import Gpus
from .metrics import Metrics
from .models.catalogue import Models
from .models.downloads.service import Downloads
from .models.downloads.source import HubSource
from .settings import HiveSettings
from .workers.service import Workers


class Agent:
    """Holds the parts together; each route calls one of them."""

    def __init__(
        self,
        settings: HiveSettings,
        registry: CollectorRegistry,
        *,
        inference_token: Token,
        hub_token: Token | None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(registry)
        self.gpus = Gpus(self._worker_of)
        self.downloads = Downloads(settings, HubSource(settings, hub_token), self.metrics.downloaded_bytes.inc)
        self.engine = EngineTest(settings.state_dir, confined=settings.confine_workers)
        self.workers = Workers(
            settings,
            self.downloads,
            self.gpus,
            engine=self.engine,
            inference_token=inference_token,
            count_restart=self.metrics.worker_restarts.inc,
        )
        self.models = Models(settings.models_dir, self.downloads, self.workers.using, self.workers.admission.lock)
        self._landlock = landlock.abi()
        self._started_at = datetime.now(UTC)

    def _worker_of(self, pid: int) -> str | None:
        return self.workers.of_process(pid)

    async def start(self) -> None:
        """Put right what the last run left, and go on with it."""
        files.sweep(self.settings.state_dir, files.begun("*"))
        # Looked up once; from then on they are known.
        await asyncio.to_thread(engine_build.has_cuda)
        interpreter()
        self.engine.start()
        self.downloads.start()
        await self.workers.start()

    async def stop(self) -> None:
        """End everything of the agent's own; workers go on, downloads at the next start."""
        await self.workers.stop()
        await self.downloads.stop()
        await self.gpus.close()
        await self.engine.stop()

    async def counts(self) -> WorkerCounts:
        """Workers by what they do."""
        statuses = [keeper.state.status for keeper in await self.workers.all()]
        return WorkerCounts(
            total=len(statuses), idle=statuses.count(WorkerStatus.IDLE), busy=statuses.count(WorkerStatus.BUSY)
        )

    async def devices(self) -> Devices:
        """What the machine has, right now."""
        found = await self.gpus.read()
        cpu, memory, disk = await asyncio.to_thread(_read_machine, self.settings.models_dir)
        return Devices(
            cpu=cpu,
            memory=memory,
            disk=disk,
            nvml=found.status,
            gpus=found.gpus,
            xids=found.xids,
            conditions=found.conditions,
            host_conditions=host_conditions.find(
                landlock=self._landlock,
                confine_workers=self.settings.confine_workers,
                unconfined=self.workers.unconfined(),
            ),
            backends=["cpu", "cuda"] if found.gpus and self._has_cuda() else ["cpu"],
            engine=self.engine.status(),
        )

    def _has_cuda(self) -> bool:
        return engine_build.has_cuda() and self.engine.failed("cuda") is None

    async def refresh_metrics(self) -> None:
        """Read all gauges anew."""
        keepers, models, found = await asyncio.gather(self.workers.all(), self.models.all(), self.devices())
        self.metrics.refresh(keepers, models, self.downloads.all(), found)

    def info(self) -> HiveInfo:
        """Which hive this is."""
        return HiveInfo(
            hive_id=self.settings.hive_id,
            version=__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            boot_id=boot_id(),
        )


def _read_machine(models_dir: Path) -> tuple[CpuInfo, MemoryInfo, MemoryInfo]:
    return machine.cpu(), machine.memory(), machine.disk(models_dir)
