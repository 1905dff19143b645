"""The faults of test hosts: their power, their lines, their disks and all that runs on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from tests.hosts.host import Host
from tests.hub_content import Faults as HubFaults

from . import promises, wall_clock
from .fault import Catalogue
from .host_hive import STATE_DIR, HostHive
from .host_world import WANTED, HostWorld, spawn_body
from .ledger import NAMES, Ledger

ON_HOSTS = Catalogue[HostWorld]()
fault = ON_HOSTS.fault

EXTRA = "extra"
# A file as a disk leaves it that lost its power.
DAMAGE = [b"", b'{"id": "', b"\x00\xff" * 200]
SLOW_BYTES_PER_SECOND = 400_000


def _hive(world: HostWorld, random: Random) -> HostHive:
    return world.hives[random.choice(sorted(world.hives))]


async def _one(hive: HostHive, random: Random) -> dict[str, Any]:
    """A worker that should run, as the hive tells of it."""
    return (await hive.workers())[random.choice(WANTED)]


async def _power_cut(hive: HostHive, off_s: float = 0.0) -> None:
    """Take the power away, and give it back after so many seconds."""
    await hive.do(hive.host.power_cut)
    await asyncio.sleep(off_s)
    await hive.do(hive.host.boot_again)


async def _tried(asking: asyncio.Task[tuple[int, Any]]) -> int:
    """The status of a request that may have been cut; 0 where there was no answer."""
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        return (await asking)[0]
    return 0


async def _cut_during(world: HostWorld, hive: HostHive, random: Random, method: str, *, power: bool) -> None:
    """Cut a request about the worker `extra` at any moment of it: what was acknowledged holds, all else may be."""
    path, body = "/api/v1/workers", spawn_body(EXTRA)
    if method == "DELETE":
        worker = await world.spawn(hive, EXTRA)
        asking = asyncio.create_task(hive.call(method, f"{path}/{worker['id']}"))
    else:
        asking = asyncio.create_task(hive.call(method, path, json=body))
    await asyncio.sleep(random.uniform(0, 1.0))
    if power:
        await _power_cut(hive)
    else:
        (await hive.agent()).send(signal.SIGKILL)
    status = await _tried(asking)
    await world.until_answers(hive, promises.BOOT_S)
    there = EXTRA in await hive.workers()
    assert status != 200 or there is (method == "POST"), f"{method} was acknowledged, and the worker is there: {there}"
    await world.delete(hive, EXTRA)


@contextlib.asynccontextmanager
async def _line_lost(host: Host, random: Random) -> AsyncIterator[None]:
    """Cut the cable, or leave it half open: the carrier there, and packets lost both ways or one."""
    lose = random.choice(
        [host.cut_cable, host.drop_packets, lambda: host.lose_packets("to"), lambda: host.lose_packets("from")]
    )
    await asyncio.to_thread(lose)
    try:
        yield
    finally:
        for mend in (host.mend_cable, host.pass_packets, host.lose_no_packets):
            await asyncio.to_thread(mend)


# ---- power


@fault(promises.BOOT_S)
async def the_power_of_a_host_is_cut(world: HostWorld, random: Random) -> None:
    """At any moment, for some seconds."""
    await _power_cut(_hive(world, random), random.uniform(0, 5))


@fault(promises.BOOT_S)
async def the_power_of_all_hosts_is_cut(world: HostWorld, random: Random) -> None:
    """As in a rack; the queen is elsewhere."""
    await asyncio.gather(*(_power_cut(hive, random.uniform(0, 3)) for hive in world.hives.values()))


@fault(promises.BOOT_S)
async def the_power_is_cut_while_a_worker_starts_or_stops(world: HostWorld, random: Random) -> None:
    """What was acknowledged is written down."""
    await _cut_during(world, _hive(world, random), random, random.choice(["POST", "DELETE"]), power=True)


@fault(promises.BOOT_S)
async def the_power_is_cut_during_a_job(world: HostWorld, random: Random) -> None:
    """The job ends, and the next one goes through."""
    hive = _hive(world, random)
    job_id = await world.provision(hive)
    await asyncio.sleep(random.uniform(0, 8))
    await _power_cut(hive)
    await world.job_ended(job_id)
    await world.provision_until_it_succeeds(hive)


@fault(promises.BOOT_S)
async def the_power_is_cut_and_a_file_is_damaged(world: HostWorld, random: Random) -> None:
    """One of the state folder's, as a disk leaves it that promised what it had not written."""
    hive = _hive(world, random)
    files = sorted(str(file.relative_to(hive.state_dir)) for file in hive.state_dir.rglob("*") if file.is_file())
    name = Path(STATE_DIR) / random.choice(files)
    await hive.do(hive.host.power_cut)
    # printf takes bytes in octal.
    octal = "".join(f"\\{byte:03o}" for byte in random.choice(DAMAGE))
    await hive.do(hive.host.run_offline, f"printf {shlex.quote(octal)} > {shlex.quote(str(name))}")
    await hive.do(hive.host.boot_again)


@fault(promises.BOOT_S)
async def a_host_is_rebooted(world: HostWorld, random: Random) -> None:
    """In order, by a person who asked nobody."""
    hive = _hive(world, random)
    await hive.do(hive.host.power_off, 60.0)
    await hive.do(hive.host.boot_again)


# ---- lines


@fault(promises.LINE_S, keeps_workers=True)
async def a_line_is_lost_for_a_while(world: HostWorld, random: Random) -> None:
    """Cut, or half open; workers serve on."""
    async with _line_lost(_hive(world, random).host, random):
        await asyncio.sleep(random.uniform(1, 8))


@fault(promises.LINE_S, keeps_workers=True)
async def a_line_is_lost_until_the_queen_says_so(world: HostWorld, random: Random) -> None:
    """She must, within the time that is promised."""
    hive = _hive(world, random)
    async with _line_lost(hive.host, random):
        await world.node_becomes(hive, "unreachable", promises.UNREACHABLE_S)
    await world.node_becomes(hive, "active", promises.LINE_S)


@fault(promises.BOOT_S, keeps_workers=True)
async def a_line_is_lost_during_a_job(world: HostWorld, random: Random) -> None:
    """For a short while the job may go on; else it ends, and the next one goes through."""
    hive = _hive(world, random)
    job_id = await world.provision(hive)
    await asyncio.sleep(random.uniform(0, 6))
    async with _line_lost(hive.host, random):
        await asyncio.sleep(random.choice([2, 5, 20]))
    await world.job_ended(job_id)
    await world.provision_until_it_succeeds(hive)


@fault(promises.BOOT_S, keeps_workers=True)
async def a_download_is_cut(world: HostWorld, random: Random) -> None:
    """By a lost line, the agent's death or the hub's; the worker that waits for its model gets it."""
    hive, model_ref = _hive(world, random), world.new_model()
    world.hub.faults = HubFaults(bytes_per_second=SLOW_BYTES_PER_SECOND)
    status, worker = await hive.call("POST", "/api/v1/workers", json=spawn_body(EXTRA, model_ref))
    assert status == 200, worker
    await asyncio.sleep(random.uniform(0, 4))
    how = random.choice(["line", "agent", "hub"])
    if how == "line":
        async with _line_lost(hive.host, random):
            await asyncio.sleep(random.uniform(1, 5))
    elif how == "agent":
        (await hive.agent()).send(signal.SIGKILL)
    else:
        world.hub.faults = HubFaults(cut_after=random.randrange(10**6), cuts=2, unavailable=2)
    world.hub.faults = HubFaults()
    await world.until_answers(hive)
    await world.spawn(hive, EXTRA, model_ref)
    await world.delete(hive, EXTRA)


# ---- disks and files


@fault(promises.DISK_S)
async def the_disk_is_full(world: HostWorld, random: Random) -> None:
    """The state folder's, to its last block; meanwhile something else goes wrong or is asked for."""
    hive = _hive(world, random)
    meanwhile = random.choice([_nothing, _the_agent_dies, _a_worker_dies, _a_worker_is_asked_for, _a_worker_is_deleted])
    if meanwhile is _a_worker_is_deleted:
        await world.spawn(hive, EXTRA)
    filler = hive.state_dir / "filler"
    await hive.do(_fill, filler)
    try:
        await meanwhile(world, hive, random)
        await asyncio.sleep(random.uniform(1, 8))
    finally:
        await hive.do(filler.unlink)
    if meanwhile is _a_worker_is_asked_for:
        await world.delete(hive, EXTRA)


async def _nothing(_world: HostWorld, _hive: HostHive, _random: Random) -> None:
    """What serves needs no disk."""


async def _the_agent_dies(world: HostWorld, hive: HostHive, _: Random) -> None:
    (await hive.agent()).send(signal.SIGKILL)
    await world.until_answers(hive)


async def _a_worker_dies(_: HostWorld, hive: HostHive, random: Random) -> None:
    for one in await hive.processes_of(await _one(hive, random)):
        one.send(signal.SIGKILL)


async def _a_worker_is_asked_for(_: HostWorld, hive: HostHive, _random: Random) -> None:
    """It is taken on, or refused with the reason."""
    status, answer = await hive.call("POST", "/api/v1/workers", json=spawn_body(EXTRA))
    assert status == 200 or answer["error"]["code"] == "state_not_written", answer


async def _a_worker_is_deleted(_: HostWorld, hive: HostHive, _random: Random) -> None:
    """At once, or as soon as there is room."""
    worker = (await hive.workers())[EXTRA]
    status, answer = await hive.call("DELETE", f"/api/v1/workers/{worker['id']}")
    assert status == 200 or answer["error"]["code"] == "state_not_written", answer


def _fill(file: Path) -> None:
    """Take the last byte of a file's disk."""
    with file.open("wb", buffering=0) as opened:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while opened.write(b"\0" * size):
                    pass
        os.fsync(opened.fileno())


@fault(promises.WORKER_S, keeps_workers=True)
async def a_file_of_a_worker_is_damaged(world: HostWorld, random: Random) -> None:
    """While the agent is away."""
    hive = _hive(world, random)
    worker = await _one(hive, random)
    await hive.systemctl("stop")
    name = random.choice(["record.json", "process.json", "ended.json", "launch"])
    (hive.state_dir / "workers" / worker["id"] / name).write_bytes(random.choice(DAMAGE))
    await hive.systemctl("start")


# ---- processes


@fault(promises.WORKER_S)
async def a_worker_dies_of_a_signal(world: HostWorld, random: Random) -> None:
    """As after a bug, for want of memory, or by a person's hand."""
    hive = _hive(world, random)
    number = random.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
    for one in await hive.processes_of(await _one(hive, random)):
        if not one.is_shim:
            one.send(number)


@fault(promises.WORKER_S, keeps_workers=True)
async def a_shim_dies(world: HostWorld, random: Random) -> None:
    """The worker goes on without it."""
    hive = _hive(world, random)
    for one in await hive.processes_of(await _one(hive, random)):
        if one.is_shim:
            one.send(signal.SIGKILL)


@fault(promises.WORKER_S)
async def a_worker_and_its_shim_die(world: HostWorld, random: Random) -> None:
    """Nobody sees how it ended."""
    hive = _hive(world, random)
    for one in await hive.processes_of(await _one(hive, random)):
        one.send(signal.SIGKILL)


@fault(promises.AGENT_S, keeps_workers=True)
async def the_agent_dies(world: HostWorld, random: Random) -> None:
    """Systemd starts the next one."""
    agent = await _hive(world, random).agent()
    agent.send(random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGABRT]))


@fault(promises.AGENT_S, keeps_workers=True)
async def the_agent_is_restarted(world: HostWorld, random: Random) -> None:
    """By systemctl, once or several times in a row."""
    hive = _hive(world, random)
    for _ in range(random.choice([1, 1, 3])):
        await hive.systemctl("restart")


@fault(promises.WORKER_S, keeps_workers=True)
async def the_agent_dies_while_a_worker_starts_or_stops(world: HostWorld, random: Random) -> None:
    """At any moment of it."""
    await _cut_during(world, _hive(world, random), random, random.choice(["POST", "DELETE"]), power=False)


@fault(promises.WORKER_S)
async def everything_of_a_hive_dies(world: HostWorld, random: Random) -> None:
    """As when the machine runs out of memory badly."""
    hive = _hive(world, random)
    running = await hive.do(hive.running)
    for one in [*running.agents, *(one for many in running.workers.values() for one in many)]:
        one.send(signal.SIGKILL)


@fault(promises.STORM_S)
async def processes_die_while_clients_ask(world: HostWorld, random: Random) -> None:
    """One after the other, at any moment; what clients were told meanwhile holds."""
    hive = _hive(world, random)
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
    hive = _hive(world, random)
    workers = [one for one in await hive.processes_of(await _one(hive, random)) if not one.is_shim]
    stopped = random.choice([*workers, await hive.agent()])
    stopped.send(signal.SIGSTOP)
    await asyncio.sleep(random.uniform(1, 5))
    stopped.send(signal.SIGCONT)


@fault(promises.HUNG_WORKER_S)
async def a_worker_hangs(world: HostWorld, random: Random) -> None:
    """Nothing lets it go on."""
    hive = _hive(world, random)
    for one in await hive.processes_of(await _one(hive, random)):
        if not one.is_shim:
            one.send(signal.SIGSTOP)


# ---- clocks


@fault(promises.JOB_S, keeps_workers=True)
async def the_wall_clock_jumps(world: HostWorld, random: Random) -> None:
    """An agent's or the queen's, by seconds or by years; half the time a job begins just then."""
    hive, seconds = _hive(world, random), wall_clock.somewhere(random)
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
    job_id = await world.provision(_hive(world, random))
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
    (await _hive(world, random).agent()).send(signal.SIGKILL)
