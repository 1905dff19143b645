"""The faults: each happens to a `World`, and is over when its function returns."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp

from llama_orch.hive import process

from .world import WANTED, World

Happens = Callable[[World, Random], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """What happens, and within how many seconds all is promised to be well again."""

    name: str
    promise_s: float
    happens: Happens


FAULTS: list[Fault] = []


def fault(promise_s: float) -> Callable[[Happens], Happens]:
    """Register a fault by its function's name."""

    def register(happens: Happens) -> Happens:
        FAULTS.append(Fault(happens.__name__, promise_s, happens))
        return happens

    return register


async def _one(world: World, random: Random) -> dict[str, Any]:
    """A worker that should run, as the hive tells of it."""
    return (await world.workers())[random.choice(WANTED)]


def _processes(world: World, worker_id: str, *, shim: bool) -> list[process.Process]:
    return [one for one in world.hive.processes().get(worker_id, []) if one.is_shim is shim]


async def _restart_agent(world: World, number: signal.Signals = signal.SIGKILL) -> None:
    await world.hive.end(number)
    await world.hive.start()


async def _die_during(world: World, random: Random, method: str, path: str, **request: Any) -> None:
    """Kill the agent at any moment of a request about the worker `extra`, and have that gone in the end."""
    asking = asyncio.create_task(world.hive.call(method, path, **request))
    await asyncio.sleep(random.uniform(0, 0.6))
    await _restart_agent(world)
    with contextlib.suppress(aiohttp.ClientError):
        await asking
    await _delete(world, "extra")


# A crash is followed by a wait of up to 16 s, by how many came before it.
@fault(45)
async def a_worker_dies_of_a_signal(world: World, random: Random) -> None:
    """As after a bug, for want of memory, or by a person's hand."""
    number = random.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
    for one in _processes(world, (await _one(world, random))["id"], shim=False):
        one.send(number)


@fault(45)
async def a_shim_dies(world: World, random: Random) -> None:
    """The worker goes on without it."""
    for one in _processes(world, (await _one(world, random))["id"], shim=True):
        one.send(signal.SIGKILL)


@fault(45)
async def a_worker_and_its_shim_die(world: World, random: Random) -> None:
    """Nobody sees how it ended."""
    for one in world.hive.processes().get((await _one(world, random))["id"], []):
        one.send(signal.SIGKILL)


@fault(20)
async def the_agent_dies(world: World, random: Random) -> None:
    """Killed or stopped, and started again as systemd does."""
    await _restart_agent(world, random.choice([signal.SIGKILL, signal.SIGTERM]))


@fault(45)
async def everything_of_the_hive_dies(world: World, _: Random) -> None:
    """As when the machine runs out of memory badly."""
    await world.hive.end(signal.SIGKILL)
    for many in world.hive.processes().values():
        for one in many:
            one.send(signal.SIGKILL)
    await world.hive.start()


@fault(45)
async def the_agent_dies_while_it_starts_a_worker(world: World, random: Random) -> None:
    """At any moment of a spawn; the worker is there afterwards, or was never acknowledged."""
    await _die_during(world, random, "POST", "/api/v1/workers", json=_spawn(world, "extra"))


@fault(45)
async def the_agent_dies_while_it_stops_a_worker(world: World, random: Random) -> None:
    """Whoever asked asks again."""
    worker = await world.hive.spawn(world.model, name="extra")
    await _die_during(world, random, "DELETE", f"/api/v1/workers/{worker['id']}")


@fault(45)
async def a_file_of_a_worker_is_damaged(world: World, random: Random) -> None:
    """While the agent is away."""
    worker = await _one(world, random)
    folder = world.hive.state_dir / "workers" / worker["id"]
    await world.hive.end(signal.SIGKILL)
    name = random.choice(["record.json", "process.json", "ended.json", "launch"])
    (folder / name).write_bytes(random.choice([b"", b'{"id": "', b"\x00\xff" * 200]))
    await world.hive.start()


@fault(45)
async def many_ask_for_the_same_workers_at_once(world: World, random: Random) -> None:
    """And for some that cannot be."""
    broken = {"model_ref": f"file:{world.broken_model}", "backend": "cpu"}
    bodies = [_spawn(world, random.choice([*WANTED, "extra"])) for _ in range(20)] + [broken] * 5
    random.shuffle(bodies)
    answers = await asyncio.gather(*(world.hive.call("POST", "/api/v1/workers", json=body) for body in bodies))
    assert {status for status, _ in answers} <= {200, 409}, answers
    for name in [name for name in await world.workers() if name not in WANTED]:
        await _delete(world, name)


@fault(45)
async def a_worker_is_deleted_by_many_at_once(world: World, _: Random) -> None:
    """Each is told that it is gone."""
    worker = await world.hive.spawn(world.model, name="extra")
    calls = (world.hive.call("DELETE", f"/api/v1/workers/{worker['id']}") for _ in range(8))
    answers = await asyncio.gather(*calls)
    assert {status for status, _ in answers} <= {200, 404}, answers


@fault(45)
async def another_program_takes_a_workers_port(world: World, random: Random) -> None:
    """Just when the worker died; it comes back on another one."""
    worker = await _one(world, random)
    for one in world.hive.processes().get(worker["id"], []):
        one.send(signal.SIGKILL)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for _ in range(50):
            with contextlib.suppress(OSError):
                squatter.bind(("127.0.0.1", int(worker["url"].rpartition(":")[2])))
                squatter.listen()
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(random.uniform(1, 5))


@fault(20)
async def a_process_is_stopped_for_a_while(world: World, random: Random) -> None:
    """As by a debugger, or a machine that swaps; the five seconds are no reason to end anything."""
    assert world.hive.agent is not None
    worker = (await _one(world, random))["pid"]
    number = random.choice([worker, world.hive.agent.pid])
    one = process.Process(number, process.start_time(number) or 0)
    one.send(signal.SIGSTOP)
    await asyncio.sleep(random.uniform(1, 5))
    one.send(signal.SIGCONT)


@fault(20)
async def clients_leave_in_the_middle_of_everything(world: World, random: Random) -> None:
    """A hundred connections that send half a request, or read half an answer."""
    worker = await _one(world, random)
    ports = [int(worker["url"].rpartition(":")[2]), world.hive.port, world.queen.port]
    request = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n{"
    )

    async def leave() -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", random.choice(ports))
            writer.write(request[: random.randrange(len(request))])
            await asyncio.sleep(random.uniform(0, 0.3))
            writer.transport.abort()

    await asyncio.gather(*(leave() for _ in range(100)))


@fault(60)
async def the_queen_dies_during_a_job(world: World, random: Random) -> None:
    """Killed or stopped at any moment of it; the job goes on when she is back."""
    await world.provision()
    await asyncio.sleep(random.uniform(0, 4))
    await asyncio.to_thread(world.queen.stop, random.choice([signal.SIGKILL, signal.SIGTERM]))
    await asyncio.to_thread(world.queen.start)


@fault(60)
async def the_queens_database_is_locked(world: World, random: Random) -> None:
    """By a backup, say, for longer than she waits for it."""
    await world.provision()
    await asyncio.sleep(random.uniform(0, 3))
    with contextlib.closing(sqlite3.connect(world.queen.data / "queen.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(random.uniform(1, 14))
        other.execute("ROLLBACK")


@fault(30)
async def the_inventory_is_broken_for_a_while(world: World, random: Random) -> None:
    """An editor's half-written file, an empty one, a host that is gone for a moment."""
    hosts = world.queen.inventory / "hosts.yml"
    hosts.write_text(random.choice(["all: [\n", "", "all:\n  children:\n    hives:\n      hosts:\n", "\x00\x01"]))
    await asyncio.sleep(random.uniform(0.2, 3))
    world.restore_inventory()


def _spawn(world: World, name: str) -> dict[str, Any]:
    return {"model_ref": world.model, "backend": "cpu", "name": name}


async def _delete(world: World, name: str) -> None:
    worker = (await world.workers()).get(name)
    if worker is not None:
        status, answer = await world.hive.call("DELETE", f"/api/v1/workers/{worker['id']}")
        assert status in {200, 404}, answer
