"""A hive as the queen sees one: four operations of the contract, with a token. The real one is another's test."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client import CollectorRegistry
from sanic import Request, Sanic

from llama_orch.base.tokens import Token
from llama_orch.contract import operations as ops
from llama_orch.contract.common import HiveHealth, WorkerCounts
from llama_orch.contract.devices import Condition, CpuInfo, Devices, GpuStatus, MemoryInfo
from llama_orch.contract.hive import HiveInfo
from llama_orch.web.app import Routes, create_app


def fake_hive(hive_id: str, token: str, conditions: list[Condition] | None = None) -> Sanic:
    """An application that answers as the hive `hive_id`, with what is in `conditions` at each moment."""
    routes = Routes((ops.HIVE_HEALTH, ops.HIVE_INFO, ops.DEVICES, ops.PROOF))

    @routes.handle(ops.HIVE_HEALTH)
    async def health(_: Request) -> HiveHealth:
        return HiveHealth(workers=WorkerCounts(total=3, idle=2, busy=1))

    @routes.handle(ops.HIVE_INFO)
    async def info(_: Request) -> HiveInfo:
        return HiveInfo(hive_id=hive_id, version="0.1.0", pid=1, started_at=datetime.now(UTC), boot_id="b")

    @routes.handle(ops.DEVICES)
    async def devices(_: Request) -> Devices:
        memory = MemoryInfo(total_bytes=2, available_bytes=1)
        cpu = CpuInfo(model="x", cores=1, load_1m=0.0)
        nvml = GpuStatus(available=False, reason="none")
        return Devices(cpu=cpu, memory=memory, disk=memory, nvml=nvml, gpus=[], conditions=list(conditions or []))

    return create_app(
        f"hive-{hive_id}", "hive", routes, token=Token(token), registry=CollectorRegistry(), identity=hive_id
    )
