"""The faults of test hosts as machines: their power, their lines and their disks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

from tests.hosts.host import Host
from tests.support.hub.content import Faults as HubFaults

from . import promises
from .fault import Catalogue
from .host_hive import STATE_DIR, HostHive
from .host_requests import cut_a_request
from .host_world import EXTRA, HostWorld, spawn_body

MACHINES = Catalogue[HostWorld]()
fault = MACHINES.fault

# A file as a disk leaves it that lost its power.
DAMAGE = [b"", b'{"id": "', b"\x00\xff" * 200]
SLOW_BYTES_PER_SECOND = 400_000


async def _power_cut(hive: HostHive, off_s: float = 0.0) -> None:
    """Take the power away, and give it back after so many seconds."""
    await hive.do(hive.host.power_cut)
    await asyncio.sleep(off_s)
    await hive.do(hive.host.boot_again)


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
    await _power_cut(world.some_hive(random), random.uniform(0, 5))


@fault(promises.BOOT_S)
async def the_power_of_all_hosts_is_cut(world: HostWorld, random: Random) -> None:
    """As in a rack; the queen is elsewhere."""
    await asyncio.gather(*(_power_cut(hive, random.uniform(0, 3)) for hive in world.hives.values()))


@fault(promises.BOOT_S)
async def the_power_is_cut_while_a_worker_starts_or_stops(world: HostWorld, random: Random) -> None:
    """What was acknowledged is written down."""
    hive = world.some_hive(random)
    await cut_a_request(world, hive, random, lambda: _power_cut(hive))


@fault(promises.BOOT_S)
async def the_power_is_cut_during_a_job(world: HostWorld, random: Random) -> None:
    """The job ends, and the next one goes through."""
    hive = world.some_hive(random)
    job_id = await world.provision(hive)
    await asyncio.sleep(random.uniform(0, 8))
    await _power_cut(hive)
    await world.job_ended(job_id)
    await world.provision_until_it_succeeds(hive)


@fault(promises.BOOT_S)
async def the_power_is_cut_and_a_file_is_damaged(world: HostWorld, random: Random) -> None:
    """One of the state folder's, as a disk leaves it that promised what it had not written."""
    hive = world.some_hive(random)
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
    hive = world.some_hive(random)
    await hive.do(hive.host.power_off, 60.0)
    await hive.do(hive.host.boot_again)


# ---- lines


@fault(promises.LINE_S, keeps_workers=True)
async def a_line_is_lost_for_a_while(world: HostWorld, random: Random) -> None:
    """Cut, or half open; workers serve on."""
    async with _line_lost(world.some_hive(random).host, random):
        await asyncio.sleep(random.uniform(1, 8))


@fault(promises.LINE_S, keeps_workers=True)
async def a_line_is_lost_until_the_queen_says_so(world: HostWorld, random: Random) -> None:
    """She must, within the time that is promised."""
    hive = world.some_hive(random)
    async with _line_lost(hive.host, random):
        await world.node_becomes(hive, "unreachable", promises.UNREACHABLE_S)
    await world.node_becomes(hive, "active", promises.LINE_S)


@fault(promises.BOOT_S, keeps_workers=True)
async def a_line_is_lost_during_a_job(world: HostWorld, random: Random) -> None:
    """For a short while the job may go on; else it ends, and the next one goes through."""
    hive = world.some_hive(random)
    job_id = await world.provision(hive)
    await asyncio.sleep(random.uniform(0, 6))
    async with _line_lost(hive.host, random):
        await asyncio.sleep(random.choice([2, 5, 20]))
    await world.job_ended(job_id)
    await world.provision_until_it_succeeds(hive)


@fault(promises.BOOT_S, keeps_workers=True)
async def a_download_is_cut(world: HostWorld, random: Random) -> None:
    """By a lost line, the agent's death or the hub's; the worker that waits for its model gets it."""
    hive, model_ref = world.some_hive(random), world.new_model()
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
    hive = world.some_hive(random)
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


async def _a_worker_dies(world: HostWorld, hive: HostHive, random: Random) -> None:
    for one in await hive.processes_of(await world.some_worker(hive, random)):
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
    hive = world.some_hive(random)
    worker = await world.some_worker(hive, random)
    await hive.systemctl("stop")
    name = random.choice(["record.json", "process.json", "ended.json", "launch"])
    (hive.state_dir / "workers" / worker["id"] / name).write_bytes(random.choice(DAMAGE))
    await hive.systemctl("start")
