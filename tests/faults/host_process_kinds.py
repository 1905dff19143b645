"""The faults of what runs on test hosts: agents, workers and shims, their clocks, and the queen."""

from __future__ import annotations

import asyncio
import signal
from random import Random

from . import promises, wall_clock
from .fault import Catalogue
from .host_requests import cut_a_request
from .host_world import HostWorld, spawn_body
from .ledger import NAMES, Ledger

PROCESSES = Catalogue[HostWorld]()
fault = PROCESSES.fault


@fault(promises.WORKER_S)
async def a_worker_dies_of_a_signal(world: HostWorld, random: Random) -> None:
    """As after a bug, for want of memory, or by a person's hand."""
    hive = world.some_hive(random)
    number = random.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
    for one in await hive.processes_of(await world.some_worker(hive, random)):
        if not one.is_shim:
            one.send(number)


@fault(promises.WORKER_S, keeps_workers=True)
async def a_shim_dies(world: HostWorld, random: Random) -> None:
    """The worker goes on without it."""
    hive = world.some_hive(random)
    for one in await hive.processes_of(await world.some_worker(hive, random)):
        if one.is_shim:
            one.send(signal.SIGKILL)


@fault(promises.WORKER_S)
async def a_worker_and_its_shim_die(world: HostWorld, random: Random) -> None:
    """Nobody sees how it ended."""
    hive = world.some_hive(random)
    for one in await hive.processes_of(await world.some_worker(hive, random)):
        one.send(signal.SIGKILL)


@fault(promises.AGENT_S, keeps_workers=True)
async def the_agent_dies(world: HostWorld, random: Random) -> None:
    """Systemd starts the next one."""
    agent = await world.some_hive(random).agent()
    agent.send(random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGABRT]))


@fault(promises.AGENT_S, keeps_workers=True)
async def the_agent_is_restarted(world: HostWorld, random: Random) -> None:
    """By systemctl, once or several times in a row."""
    hive = world.some_hive(random)
    for _ in range(random.choice([1, 1, 3])):
        await hive.systemctl("restart")


@fault(promises.WORKER_S, keeps_workers=True)
async def the_agent_dies_while_a_worker_starts_or_stops(world: HostWorld, random: Random) -> None:
    """At any moment of it."""
    hive = world.some_hive(random)

    async def kill() -> None:
        (await hive.agent()).send(signal.SIGKILL)

    await cut_a_request(world, hive, random, kill)


@fault(promises.WORKER_S)
async def everything_of_a_hive_dies(world: HostWorld, random: Random) -> None:
    """As when the machine runs out of memory badly."""
    hive = world.some_hive(random)
    running = await hive.do(hive.running)
    for one in [*running.agents, *(one for many in running.workers.values() for one in many)]:
        one.send(signal.SIGKILL)


@fault(promises.STORM_S)
async def processes_die_while_clients_ask(world: HostWorld, random: Random) -> None:
    """One after the other, at any moment; what clients were told meanwhile holds."""
    hive = world.some_hive(random)
    ledger = Ledger(hive.call, spawn_body)
    async with ledger.asking(Random(random.random())):
        for _ in range(random.randint(5, 12)):
            await asyncio.sleep(random.uniform(0, 1.5))
            running = await hive.do(hive.running)
            candidates = [*running.agents, *(one for many in running.workers.values() for one in many)]
            if candidates:
                random.choice(candidates).send(random.choice([signal.SIGKILL, signal.SIGTERM]))
    await world.until_answers(hive)
    lost = ledger.lost(await hive.workers())
    assert not lost, lost
    for name in NAMES:
        await world.delete(hive, name)


@fault(promises.AGENT_S, keeps_workers=True)
async def a_process_is_stopped_for_a_while(world: HostWorld, random: Random) -> None:
    """As by a debugger, or a machine that swaps; the five seconds are no reason to end anything."""
    hive = world.some_hive(random)
    workers = [one for one in await hive.processes_of(await world.some_worker(hive, random)) if not one.is_shim]
    stopped = random.choice([*workers, await hive.agent()])
    stopped.send(signal.SIGSTOP)
    await asyncio.sleep(random.uniform(1, 5))
    stopped.send(signal.SIGCONT)


@fault(promises.HUNG_WORKER_S)
async def a_worker_hangs(world: HostWorld, random: Random) -> None:
    """Nothing lets it go on."""
    hive = world.some_hive(random)
    for one in await hive.processes_of(await world.some_worker(hive, random)):
        if not one.is_shim:
            one.send(signal.SIGSTOP)


# ---- clocks


@fault(promises.JOB_S, keeps_workers=True)
async def the_wall_clock_jumps(world: HostWorld, random: Random) -> None:
    """An agent's or the queen's, by seconds or by years; half the time a job begins just then."""
    hive, seconds = world.some_hive(random), wall_clock.somewhere(random)
    if random.random() < 0.5:
        world.clock.set(seconds)
    else:
        await hive.do(world.set_clock, hive, seconds)
    if random.random() < 0.5:
        await world.provision(hive)


# ---- the queen


@fault(promises.QUEEN_S, keeps_workers=True)
async def the_queen_dies(world: HostWorld, random: Random) -> None:
    """With nothing to do."""
    await asyncio.to_thread(world.queen.stop, random.choice([signal.SIGKILL, signal.SIGTERM]))
    await asyncio.sleep(random.uniform(0, 3))
    await asyncio.to_thread(world.queen.start)


@fault(promises.JOB_S, keeps_workers=True)
async def the_queen_dies_during_a_job(world: HostWorld, random: Random) -> None:
    """Killed or stopped at any moment of it; the job goes on when she is back."""
    job_id = await world.provision(world.some_hive(random))
    await asyncio.sleep(random.uniform(0, 8))
    await asyncio.to_thread(world.queen.stop, random.choice([signal.SIGKILL, signal.SIGTERM]))
    await asyncio.to_thread(world.queen.start)
    await world.job_succeeds(job_id)


@fault(promises.JOB_S, keeps_workers=True)
async def all_hosts_have_a_job_at_once(world: HostWorld, random: Random) -> None:
    """And one agent dies meanwhile."""
    for hive in world.hives.values():
        await world.provision(hive)
    await asyncio.sleep(random.uniform(0, 6))
    (await world.some_hive(random).agent()).send(signal.SIGKILL)
