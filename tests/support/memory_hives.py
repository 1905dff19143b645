"""Hives in memory, by address. They pass the contract of those that are asked over the network."""

from __future__ import annotations

from dataclasses import dataclass, field

from llama_orch.contract.common import WorkerCounts
from llama_orch.contract.devices import CpuInfo, Devices, GpuStatus, MemoryInfo
from llama_orch.contract.queen import NodeHive
from llama_orch.queen.fleet.hives import HiveSilent, NoTokenYet, base_url
from llama_orch.queen.inventory.view import Host

_MEMORY = MemoryInfo(total_bytes=2, available_bytes=1)
DEVICES = Devices(
    cpu=CpuInfo(model="x", cores=1, load_1m=0.0),
    memory=_MEMORY,
    disk=_MEMORY,
    nvml=GpuStatus(available=False, reason="none"),
    gpus=[],
    conditions=[],
)


def a_host(name: str, port: int = 8081, *, connection: str = "ssh") -> Host:
    """A host of the inventory whose hive listens on loopback."""
    return Host(name, name, 22, "u", {}, "inventory", "127.0.0.1", port, connection=connection)


@dataclass
class MemoryHive:
    """A hive that proves its `token`, and calls itself `hive_id`."""

    hive_id: str
    token: str


@dataclass
class MemoryHives:
    """`tokens` are those that were made for nodes, by name; `listening` is what listens, by port."""

    tokens: dict[str, str] = field(default_factory=dict[str, str])
    listening: dict[int, MemoryHive] = field(default_factory=dict[int, MemoryHive])
    asked: list[str] = field(default_factory=list[str])

    def add(self, host: Host) -> None:
        """A hive for this host, as provisioning makes one."""
        self.tokens[host.name] = f"the token of {host.name}"
        self.listening[host.hive_port] = MemoryHive(host.name, self.tokens[host.name])

    async def ask(self, host: Host) -> NodeHive:
        """As the real ones answer."""
        self.asked.append(host.name)
        url, token, hive = base_url(host), self.tokens.get(host.name), self.listening.get(host.hive_port)
        if token is None:
            raise NoTokenYet(host.name)
        if hive is None:
            raise HiveSilent("hive_unreachable", f"nothing answers at {url}", "Look there.")
        if hive.token != token:
            raise HiveSilent("hive_not_proven", f"what answers at {url} does not know the token", "Provision again.")
        if hive.hive_id != host.name:
            raise HiveSilent("wrong_hive", f"{url} answers as hive '{hive.hive_id}'", "Look at hive_address.")
        workers = WorkerCounts(total=3, idle=2, busy=1)
        return NodeHive(hive_id=hive.hive_id, version="0.1.0", url=url, workers=workers, devices=DEVICES)
