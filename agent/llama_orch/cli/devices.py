"""`llama-orch devices`: what a hive runs on."""

from __future__ import annotations

from llama_orch.contract.devices import Devices, EngineStatus, Gpu, LibraryResult

from .connection import Connection, HiveOption, JsonOption, QueenOption, TokenFileOption
from .output import line, print_json, print_table, size
from .running import run

_FAILED = {LibraryResult.DIED: "died", LibraryResult.WRONG: "computed wrongly", LibraryResult.HUNG: "hung"}


def devices(
    *,
    hive: HiveOption = None,
    queen: QueenOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show CPU, memory, disk and GPUs of a hive."""

    async def work() -> Devices:
        async with await Connection(queen, hive, token_file).open_hive() as client:
            return await client.devices()

    found = run(work())
    if as_json:
        print_json(found)
        return
    cpu, memory, disk = found.cpu, found.memory, found.disk
    line(f"CPU     {cpu.model}, {cpu.cores} cores, load {cpu.load_1m:.2f}")
    show_engine(found.engine)
    line(f"Memory  {size(memory.available_bytes)} available of {size(memory.total_bytes)}")
    line(f"Disk    {size(disk.available_bytes)} available of {size(disk.total_bytes)}")
    for condition in found.conditions:
        remedy = f" [remedy: {condition.remedy}]" if condition.remedy else ""
        line(f"{condition.type}: {condition.message}; {condition.what_to_do}{remedy}", style="red")
    for one in found.host_conditions:
        line(f"{one.type}: {one.message}; {one.what_to_do}", style="yellow")
    if not found.nvml.available:
        line(f"GPUs    none: {found.nvml.reason or 'NVML does not answer'}")
        return
    line(f"Driver  {found.nvml.driver_version or '-'}, CUDA {found.nvml.cuda_version or '-'}")
    print_table(("GPU", "NAME", "MEMORY USED", "LOAD", "°C", "WATTS"), map(_row, found.gpus), nothing="No GPUs.")


def show_engine(engine: EngineStatus | None) -> None:
    """The library that CPU workers compute with, and each that failed the self-test."""
    if engine is None or (engine.tested_at is None and not engine.libraries):
        line("Engine  its self-test has not ended")
        return
    used = next(
        (one.name for one in engine.libraries if one.file == engine.cpu_library), "none of its libraries computes"
    )
    line(f"Engine  {used}")
    for one in engine.libraries:
        if one.result not in {LibraryResult.PASSED, LibraryResult.NOT_TESTED}:
            reason = f" ({one.reason})" if one.reason else ""
            line(f"{one.name} is left out: it {_FAILED[one.result]} in its self-test{reason}", style="red")


def _row(gpu: Gpu) -> tuple[str | None, ...]:
    def number(value: float | None, unit: str = "") -> str | None:
        return None if value is None else f"{value:.0f}{unit}"

    used = f"{size(gpu.memory_used_bytes)} of {size(gpu.memory_total_bytes)}"
    return (
        str(gpu.index),
        gpu.name,
        used,
        number(gpu.utilization_percent, " %"),
        number(gpu.temperature_celsius),
        number(gpu.power_watts),
    )
