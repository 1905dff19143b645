"""The GPUs, read by a process of their own for all who ask; what is wrong with them; whose processes use them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import time
from collections import deque
from collections.abc import Callable

from pydantic import BaseModel, Field

from llama_orch.base.child import Child
from llama_orch.base.processes import interpreter
from llama_orch.contract.devices import Condition, Gpu, GpuFault, GpuStatus, Xid

from . import gpu_conditions

# Well within what the queen gives a hive (its `probe_timeout_s`), so that it hears what is wrong.
PATIENCE_S = 3.0
# Then the question is given up, and the process that asked it ended.
TIMEOUT_S = 5.0
# One reading serves all who ask within this time.
FRESH_S = 1.0
# A machine without the driver's library hardly gets it meanwhile, and looking costs a process.
MISSING_S = 30.0
KILL_S = 1.0
KEPT_XIDS = 64


class Reading(BaseModel):
    """What NVML said at one moment, and what follows from it."""

    status: GpuStatus
    gpus: list[Gpu] = Field(default_factory=list)
    xids: list[Xid] = Field(default_factory=list)
    conditions: list[Condition] = Field(default_factory=list)


class Gpus:
    """Asks a child process, which may hang or crash; the agent then says so and starts another.

    `worker_of` tells which worker a process belongs to.
    """

    def __init__(self, worker_of: Callable[[int], str | None] = lambda _: None) -> None:
        self._worker_of = worker_of
        self._child: Child | None = None
        self._killed = False
        self._reading: asyncio.Task[None] | None = None
        self._last = _silent("not read yet")
        self._asked_at = self._read_at = -math.inf
        # GPUs that were there once, by UUID: one that is not any more is a fault.
        self._known: dict[str, Gpu] = {}
        self._xids: deque[Xid] = deque(maxlen=KEPT_XIDS)

    async def read(self, *, now: bool = False) -> Reading:
        """The GPUs as they are; with `now` not as they were before this question. Raises nothing.

        Without `now`, nobody waits for an answer that is longer than PATIENCE_S in coming.
        """
        if now and self._reading is not None:
            await asyncio.shield(self._reading)
        if self._reading is None and (now or self._is_old()):
            self._asked_at = time.monotonic()
            # A task of its own: a caller that leaves must not leave an answer in the pipe for the next one.
            self._reading = asyncio.create_task(self._read())
        if self._reading is not None:
            try:
                async with asyncio.timeout(None if now else self._asked_at + PATIENCE_S - time.monotonic()):
                    await asyncio.shield(self._reading)
            except TimeoutError:
                return self._completed(_silent(f"the NVIDIA driver did not answer within {PATIENCE_S:.0f} s"))
        return self._last

    async def close(self) -> None:
        """End the child."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await self._end_child()

    def _is_old(self) -> bool:
        kept = MISSING_S if self._last.status.fault is GpuFault.LIBRARY_MISSING else FRESH_S
        return time.monotonic() - self._read_at > kept

    async def _read(self) -> None:
        try:
            self._last = self._completed(await self._ask())
            self._read_at = time.monotonic()
        finally:
            self._reading = None

    async def _ask(self) -> Reading:
        if self._killed and self._child is not None and self._child.status is None:
            # The kernel still holds it; another one would only hang beside it.
            return _silent("the NVIDIA driver has not answered an earlier question")
        try:
            async with asyncio.timeout(TIMEOUT_S):
                line = await self._line()
                if not line.endswith(b"\n") and await self._ended() == -signal.SIGKILL:
                    # Somebody ended it, before its answer or in the middle; that says nothing of the driver.
                    line = await self._line()
            reading = Reading.model_validate_json(line)
        except TimeoutError:
            await self._end_child()
            return _silent(f"the NVIDIA driver did not answer within {TIMEOUT_S:.0f} s")
        except (ValueError, OSError):
            # No answer, no whole one, or none that can be read: that child is asked nothing more.
            return _silent(f"the process that asks the NVIDIA driver ended (status {await self._ended()})")
        if not reading.status.available:
            # It ends by itself; the next one begins with the library as it is then.
            await self._ended()
        return reading

    async def _line(self) -> bytes:
        child = await self._running_child()
        child.say(b"\n")
        return await child.stdout.readline()

    async def _running_child(self) -> Child:
        """The child, started where there is none."""
        if self._child is not None and self._child.status is None:
            return self._child
        self._killed = False
        # It ends with the thread that started it; those of the loop's pool last as long as the agent.
        self._child = await Child.start([interpreter(), "-m", "llama_orch.hive.devices.nvml_child"])
        return self._child

    async def _ended(self) -> int | None:
        """The status of a child that is about to end by itself."""
        with contextlib.suppress(TimeoutError):
            if self._child is not None:
                return await asyncio.wait_for(self._child.wait(), KILL_S)
        return await self._end_child()

    async def _end_child(self) -> int | None:
        if self._child is None:
            return None
        self._killed = True
        # One that hangs in the driver ends when the driver lets it go.
        return await self._child.end(KILL_S)

    def _completed(self, reading: Reading) -> Reading:
        gpus = [self._named(gpu) for gpu in reading.gpus]
        for gpu in gpus:
            if gpu.uuid:
                self._known[gpu.uuid] = gpu
        # Each is told once, and the child that told it may be gone.
        self._xids.extend(reading.xids)
        xids = list(self._xids)
        conditions = gpu_conditions.find(reading.status, gpus, xids, list(self._known.values()))
        return Reading(status=reading.status, gpus=gpus, xids=xids, conditions=conditions)

    def _named(self, gpu: Gpu) -> Gpu:
        if gpu.problem is not None and not gpu.uuid:
            # One that is lost does not even tell its name: take it from when it did.
            before = next((known for known in self._known.values() if known.index == gpu.index), None)
            return gpu.model_copy(update={"uuid": before.uuid, "name": before.name}) if before else gpu
        if gpu.processes is None:
            return gpu
        ours = [one.model_copy(update={"worker_id": self._worker_of(one.pid)}) for one in gpu.processes]
        return gpu.model_copy(update={"processes": ours})


def _silent(reason: str) -> Reading:
    return Reading(status=GpuStatus(available=False, fault=GpuFault.NO_ANSWER, reason=reason))
