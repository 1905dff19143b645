"""The states that a GPU can be in, and what a hive says in each; `python -m tests.support.nvml.states` writes it down.

What is observed is what the agent's API and its metrics are made of; what reads NVML is the code that runs on a GPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from llama_orch.base.tokens import Token
from llama_orch.hive.agent import Agent
from llama_orch.hive.settings import HiveSettings

from . import (
    DRIVER_NOT_LOADED,
    GIB,
    GPU_IS_LOST,
    NOT_SUPPORTED,
    RESET_REQUIRED,
    UNKNOWN,
    VERSION_MISMATCH,
    FakeNvml,
    error,
    gpu,
)

PAGE = Path(__file__).parents[3] / "docs" / "gpu.md"
HEAD = (
    "| state | `GET /api/v1/devices` | metrics | condition | cordons | remedy |",
    "|---|---|---|---|---|---|",
)
BEGIN = "<!-- written by `python -m tests.support.nvml.states` -->"
XID_WAIT_S = 10.0
# Where more values than this are missing, they are counted.
FEW = 3


@dataclass(frozen=True)
class State:
    """What NVML says.

    `nvml` are its answers as a whole, `gpu` those of the one GPU where they are not a healthy one's, None without one.
    `before`: the GPUs were healthy, and there was another one, when the hive first looked. `library`: whether NVML is
    there at all.
    """

    nvml: dict[str, Any] = field(default_factory=dict[str, Any])
    gpu: dict[str, Any] | None = field(default_factory=dict[str, Any])
    before: bool = False
    library: bool = True


@dataclass(frozen=True)
class Seen:
    """What the API answers, and the metrics of GPUs by name and label."""

    devices: dict[str, Any]
    metrics: dict[str, float]


STATES = {
    "healthy": State(),
    "no NVIDIA library": State(library=False),
    "no GPU in the machine": State(gpu=None),
    "driver not loaded": State({"init": DRIVER_NOT_LOADED}),
    "a driver that was there is gone": State({"init": DRIVER_NOT_LOADED}, before=True),
    "half updated": State({"init": VERSION_MISMATCH}),
    "an error that nobody knows": State({"init": UNKNOWN}),
    "the library crashes": State({"crash": True}),
    "the driver hangs": State({"hang": 20}),
    "a GPU that was there is gone": State(before=True),
    "lost": State(gpu={"handle": error(GPU_IS_LOST)}),
    "lost while it is asked": State(gpu={"temperature": error(GPU_IS_LOST)}),
    "an error of one GPU that nobody knows": State(gpu={"handle": error(UNKNOWN)}),
    "reset required": State(gpu={"utilization": error(RESET_REQUIRED)}),
    "uncorrectable memory error": State(gpu={"uncorrected": 1}),
    "corrected memory errors": State(gpu={"corrected": 7}),
    "uncorrectable long ago": State(gpu={"uncorrected_ever": 3}),
    "rows wait for a reset": State(gpu={"remap_pending": 1}),
    "no spare rows": State(gpu={"remap_failed": 1}),
    "no ECC": State(
        gpu=dict.fromkeys(("corrected", "uncorrected", "corrected_ever", "uncorrected_ever", "remap_pending"))
    ),
    "over temperature": State(gpu={"temperature": 95}),
    "slowed down by heat": State(gpu={"reasons": 0x40}),
    "slowed down by its power limit": State(gpu={"reasons": 0x4}),
    "idle clocks": State(gpu={"reasons": 0x1}),
    "fell off the bus": State({"xids": [(0, 79)]}),
    "its system processor does not answer": State({"xids": [(0, 119)]}),
    "a program's own fault": State({"xids": [(0, 31)]}),
    "many corrected errors": State({"xids": [(0, 92)]}),
    "shares the machine's memory": State(gpu={"total": error(NOT_SUPPORTED)}),
    "divided up": State(
        gpu={"mig": 1, "mig0.uuid": "MIG-0", "mig0.name": "1g.10gb", "mig0.total": 10 * GIB, "mig0.used": GIB}
    ),
    "somebody computes on it": State(gpu={"process": 4711}),
    "an old board that tells little": State(
        gpu=dict.fromkeys(("utilization", "temperature", "slowdown", "power", "limit", "clock", "memory_clock"))
    ),
}


async def observe(nvml: FakeNvml, state: State, folder: Path) -> Seen:
    """Bring NVML into the state, and look with an agent of its own. `folder` is for the agent's files."""
    registry = CollectorRegistry()
    settings = HiveSettings(state_dir=folder / "state", models_dir=folder, log_dir=folder / "log")
    settings.state_dir.mkdir(parents=True)
    agent = Agent(settings, registry, inference_token=Token("inference-token-of-the-tests"), hub_token=None)
    environment = nvml.environment if state.library else {"LD_LIBRARY_PATH": str(folder)}
    with _environment(environment):
        try:
            if state.before:
                nvml.set(gpu(0), gpu(1))
                await agent.gpus.read(now=True)
            nvml.set(*([gpu(0, **state.gpu)] if state.gpu is not None else []), **state.nvml)
            await agent.gpus.read(now=True)
            async with asyncio.timeout(XID_WAIT_S):
                # An event comes when it comes.
                while "xids" in state.nvml and not (await agent.gpus.read()).xids:
                    await agent.gpus.read(now=True)
            await agent.refresh_metrics()
            return Seen((await agent.devices()).model_dump(mode="json"), _gpu_metrics(registry))
        finally:
            await agent.stop()


def row(name: str, seen: Seen, healthy: Seen) -> str:
    """A state's line of the table: what is another than of a healthy GPU."""
    conditions = seen.devices["conditions"]
    cells = [
        name,
        ", ".join(_api(seen.devices, healthy.devices)) or "–",
        ", ".join(_metrics(seen.metrics, healthy.metrics)) or "–",
        ", ".join(f"`{one['type']}`" for one in conditions) or "–",
        ", ".join("yes" if one["cordons"] else "no" for one in conditions) or "–",
        ", ".join(f"`{one['remedy']}`" for one in conditions) or "–",
    ]
    return f"| {' | '.join(cells)} |"


def rows_of_docs() -> dict[str, str]:
    """The lines of the table in docs/gpu.md by their state."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].strip().split("\n\n")[0].splitlines()
    assert tuple(table[:2]) == HEAD
    return {line.split("|")[1].strip(): line for line in table[2:]}


def _api(devices: dict[str, Any], healthy: dict[str, Any]) -> list[str]:
    found = [f"`nvml.fault` {devices['nvml']['fault']}"] if devices["nvml"]["fault"] else []
    found += [f"`xids` {xid['code']}" for xid in devices["xids"]]
    if not devices["gpus"]:
        return [*found, "no `gpus`"]
    now, then = _flat(devices["gpus"][0]), _flat(healthy["gpus"][0])
    changed = {key: value for key, value in now.items() if value != then.get(key)}
    found += [f"`{key}` {_shown(value)}" for key, value in changed.items() if value is not None]
    untold = [key for key, value in changed.items() if value is None]
    untold += sorted({key.partition(".")[0] for key in then if key not in now})
    return found + ([f"`{key}` null" for key in untold] if len(untold) <= FEW else [f"{len(untold)} values null"])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(one.get("name") or one.get("pid")) if isinstance(one, dict) else one for one in value)
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, bool) or value == "" else str(value)


def _gpu_metrics(registry: CollectorRegistry) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in generate_latest(registry).decode().splitlines():
        key, _, value = line.rpartition(" ")
        name = key.removeprefix("llama_orch_hive_")
        # Which GPU it is says its name tag, not how it is.
        if re.match(r"(gpus?|nvml)_|gpus$", name) and not name.startswith("gpu_info"):
            label = re.search(r'(?:type|reason)="(\w+)"', name)
            found[name.partition("{")[0] + (f"{{{label[0]}}}" if label else "")] = float(value)
    return found


def _metrics(metrics: dict[str, float], healthy: dict[str, float]) -> list[str]:
    changed = [f"`{name}` {value:g}" for name, value in metrics.items() if value != healthy.get(name)]
    gone = [name for name in healthy if name not in metrics]
    if len(gone) > FEW:
        return [*changed, f"{len(gone)} missing"]
    return changed + [f"`{name}` missing" for name in gone]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process for a while: the process that reads NVML inherits them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({name: value} if value is not None else {})


def _write(rows: list[str]) -> None:
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.lstrip().partition("\n\n")
    table = "\n".join([*HEAD, *rows])
    PAGE.write_text(f"{before}{mark}\n\n{table}\n\n{after}", encoding="utf-8")


async def _main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        nvml = FakeNvml(Path(temporary))
        seen = {name: await observe(nvml, state, Path(temporary, name)) for name, state in STATES.items()}
    _write([row(name, one, seen["healthy"]) for name, one in seen.items()])


if __name__ == "__main__":
    asyncio.run(_main())
