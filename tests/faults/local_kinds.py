"""The faults: each happens to a `LocalWorld`, and is over when its function returns."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sqlite3
from random import Random
from typing import Any

import aiohttp

from llama_orch.base import processes
from llama_orch.hive.workers import process_table

from . import promises, wall_clock
from .fault import Catalogue
from .ledger import NAMES, Ledger
from .local_world import WANTED, LocalWorld

LOCAL = Catalogue[LocalWorld]()
fault = LOCAL.fault


async def _one(world: LocalWorld, random: Random) -> dict[str, Any]:
    """A worker that should run, as the hive tells of it."""
    return (await world.workers())[random.choice(WANTED)]


def _processes(world: LocalWorld, worker_id: str, *, shim: bool) -> list[process_table.Process]:
    return [one for one in world.hive.processes().get(worker_id, []) if one.is_shim is shim]


async def _restart_agent(world: LocalWorld, number: signal.Signals = signal.SIGKILL) -> None:
    await world.hive.end(number)
    await world.hive.start()


async def _die_during(world: LocalWorld, random: Random, method: str, path: str, **request: Any) -> None:
    """Kill the agent at any moment of a request about the worker `extra`, and have that gone in the end."""
    asking = asyncio.create_task(world.hive.call(method, path, **request))
    await asyncio.sleep(random.uniform(0, 0.6))
    await _restart_agent(world)
    status = 0
    with contextlib.suppress(aiohttp.ClientError):
        status, _ = await asking
    there = "extra" in await world.workers()
    assert status != 200 or there is (method == "POST"), f"{method} was acknowledged, and the worker is there: {there}"
    await _delete(world, "extra")


@fault(promises.WORKER_S)
async def a_worker_dies_of_a_signal(world: LocalWorld, random: Random) -> None:
    """As after a bug, for want of memory, or by a person's hand."""
    number = random.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
    for one in _processes(world, (await _one(world, random))["id"], shim=False):
        one.send(number)


@fault(promises.WORKER_S, keeps_workers=True)
async def a_shim_dies(world: LocalWorld, random: Random) -> None:
    """The worker goes on without it."""
    for one in _processes(world, (await _one(world, random))["id"], shim=True):
        one.send(signal.SIGKILL)


@fault(promises.WORKER_S)
async def a_worker_and_its_shim_die(world: LocalWorld, random: Random) -> None:
    """Nobody sees how it ended."""
    for one in world.hive.processes().get((await _one(world, random))["id"], []):
        one.send(signal.SIGKILL)


@fault(promises.AGENT_S, keeps_workers=True)
async def the_agent_dies(world: LocalWorld, random: Random) -> None:
    """Killed or stopped, and started again as systemd does."""
    await _restart_agent(world, random.choice([signal.SIGKILL, signal.SIGTERM]))


@fault(promises.WORKER_S)
async def everything_of_the_hive_dies(world: LocalWorld, _: Random) -> None:
    """As when the machine runs out of memory badly."""
    await world.hive.end(signal.SIGKILL)
    for many in world.hive.processes().values():
        for one in many:
            one.send(signal.SIGKILL)
    await world.hive.start()


@fault(promises.WORKER_S, keeps_workers=True)
async def the_agent_dies_while_it_starts_a_worker(world: LocalWorld, random: Random) -> None:
    """At any moment of a spawn; the worker is there afterwards, or was never acknowledged."""
    await _die_during(world, random, "POST", "/api/v1/workers", json=_spawn(world, "extra"))


@fault(promises.WORKER_S, keeps_workers=True)
async def the_agent_dies_while_it_stops_a_worker(world: LocalWorld, random: Random) -> None:
    """Whoever asked asks again."""
    worker = await world.hive.spawn(world.model, name="extra")
    await _die_during(world, random, "DELETE", f"/api/v1/workers/{worker['id']}")


@fault(promises.WORKER_S, keeps_workers=True)
async def a_file_of_a_worker_is_damaged(world: LocalWorld, random: Random) -> None:
    """While the agent is away."""
    worker = await _one(world, random)
    folder = world.hive.state_dir / "workers" / worker["id"]
    await world.hive.end(signal.SIGKILL)
    name = random.choice(["record.json", "process.json", "ended.json", "launch"])
    (folder / name).write_bytes(random.choice([b"", b'{"id": "', b"\x00\xff" * 200]))
    await world.hive.start()


@fault(promises.WORKER_S, keeps_workers=True)
async def many_ask_for_the_same_workers_at_once(world: LocalWorld, random: Random) -> None:
    """And for some that cannot be."""
    broken = {"model_ref": f"file:{world.broken_model}", "backend": "cpu"}
    bodies = [_spawn(world, random.choice([*WANTED, "extra"])) for _ in range(20)] + [broken] * 5
    random.shuffle(bodies)
    answers = await asyncio.gather(*(world.hive.call("POST", "/api/v1/workers", json=body) for body in bodies))
    assert {status for status, _ in answers} <= {200, 409}, answers
    for name in [name for name in await world.workers() if name not in WANTED]:
        await _delete(world, name)


@fault(promises.WORKER_S, keeps_workers=True)
async def a_worker_is_deleted_by_many_at_once(world: LocalWorld, _: Random) -> None:
    """Each is told that it is gone."""
    worker = await world.hive.spawn(world.model, name="extra")
    calls = (world.hive.call("DELETE", f"/api/v1/workers/{worker['id']}") for _ in range(8))
    answers = await asyncio.gather(*calls)
    assert {status for status, _ in answers} <= {200, 404}, answers


@fault(promises.WORKER_S)
async def another_program_takes_a_workers_port(world: LocalWorld, random: Random) -> None:
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


@fault(promises.STORM_S)
async def processes_die_while_clients_ask(world: LocalWorld, random: Random) -> None:
    """One after the other, at any moment; what clients were told meanwhile holds."""
    ledger = Ledger(world.hive.call, lambda name: _spawn(world, name))
    async with ledger.asking(Random(random.random())):
        for _ in range(random.randint(5, 12)):
            await asyncio.sleep(random.uniform(0, 1.5))
            workers = [one for many in world.hive.processes().values() for one in many]
            victim = random.choice([*workers, None])
            if victim is None:
                await _restart_agent(world)
            else:
                victim.send(random.choice([signal.SIGKILL, signal.SIGTERM]))
    lost = ledger.lost(await world.workers())
    assert not lost, lost
    for name in NAMES:
        await _delete(world, name)


@fault(promises.AGENT_S, keeps_workers=True)
async def a_process_is_stopped_for_a_while(world: LocalWorld, random: Random) -> None:
    """As by a debugger, or a machine that swaps; the five seconds are no reason to end anything."""
    assert world.hive.agent is not None
    worker = (await _one(world, random))["pid"]
    number = random.choice([worker, world.hive.agent.pid, world.queen.pid])
    one = process_table.Process(number, processes.start_time(number) or 0)
    one.send(signal.SIGSTOP)
    await asyncio.sleep(random.uniform(1, 5))
    one.send(signal.SIGCONT)


@fault(promises.HUNG_WORKER_S)
async def a_worker_hangs(world: LocalWorld, random: Random) -> None:
    """Nothing lets it go on."""
    for one in _processes(world, (await _one(world, random))["id"], shim=False):
        one.send(signal.SIGSTOP)


@fault(promises.JOB_S, keeps_workers=True)
async def the_wall_clock_jumps(world: LocalWorld, random: Random) -> None:
    """The agent's or the queen's, by seconds or by years; half the time something happens just then."""
    world.clocks[random.choice(sorted(world.clocks))].set(wall_clock.somewhere(random))
    if random.random() < 0.5:
        await world.provision()


@fault(promises.AGENT_S, keeps_workers=True)
async def clients_leave_in_the_middle_of_everything(world: LocalWorld, random: Random) -> None:
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


@fault(promises.JOB_S, keeps_workers=True)
async def the_queen_dies_during_a_job(world: LocalWorld, random: Random) -> None:
    """Killed or stopped at any moment of it; the job goes on when she is back."""
    await world.provision()
    await asyncio.sleep(random.uniform(0, 4))
    await asyncio.to_thread(world.queen.stop, random.choice([signal.SIGKILL, signal.SIGTERM]))
    await asyncio.to_thread(world.queen.start)


@fault(promises.QUEEN_S, keeps_workers=True)
async def the_queen_dies(world: LocalWorld, random: Random) -> None:
    """With nothing to do."""
    await asyncio.to_thread(world.queen.stop, random.choice([signal.SIGKILL, signal.SIGTERM]))
    await asyncio.to_thread(world.queen.start)


@fault(promises.JOB_S, keeps_workers=True)
async def the_queens_database_is_locked(world: LocalWorld, random: Random) -> None:
    """By a backup, say, for longer than she waits for it."""
    await world.provision()
    await asyncio.sleep(random.uniform(0, 3))
    with contextlib.closing(sqlite3.connect(world.queen.data / "queen.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(random.uniform(1, 14))
        other.execute("ROLLBACK")


@fault(promises.INVENTORY_S, keeps_workers=True)
async def the_inventory_is_broken_for_a_while(world: LocalWorld, random: Random) -> None:
    """An editor's half-written file, an empty one, a host that is gone for a moment."""
    hosts = world.queen.inventory / "hosts.yml"
    hosts.write_text(random.choice(["all: [\n", "", "all:\n  children:\n    hives:\n      hosts:\n", "\x00\x01"]))
    await asyncio.sleep(random.uniform(0.2, 3))
    world.restore_inventory()


def _spawn(world: LocalWorld, name: str) -> dict[str, Any]:
    return {"model_ref": world.model, "backend": "cpu", "name": name}


async def _delete(world: LocalWorld, name: str) -> None:
    worker = (await world.workers()).get(name)
    if worker is not None:
        status, answer = await world.hive.call("DELETE", f"/api/v1/workers/{worker['id']}")
        assert status in {200, 404}, answer
