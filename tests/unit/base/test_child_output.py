"""Real children that say too much, half of it, or leave their pipes to others."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from llama_orch.base.child import Child
from llama_orch.base.child_output import PIECE, Tail, hear_out, lines
from llama_orch.queen.ansible.ssh import FAILED, Ssh, SshSetup
from llama_orch.queen.inventory.view import Host


async def a_child(script: str) -> Child:
    return await Child.start(["bash", "-c", script], stderr=PIPE)


async def lines_of(script: str, most: int = 100) -> list[bytes]:
    child = await a_child(script)
    found = [line async for line in lines(child.stdout, most)]
    await child.wait()
    await child.end()
    return found


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo one; echo two", [b"one", b"two"]),
        ("printf 'on'; sleep 0.05; printf 'e\\ntwo\\n'", [b"one", b"two"]),
        ("echo one; printf half", [b"one"]),
        ("echo one; printf half; kill -9 $$", [b"one"]),
        ("printf '%0101d\\n' 1; echo two", [b"two"]),
        (f"head -c {3 * PIECE} /dev/zero | tr '\\0' x; echo end; echo two", [b"two"]),
        ("head -c 200000 /dev/zero; echo one; printf '\\xff\\xfe\\n'", [b"\xff\xfe"]),
        (f"head -c {2 * PIECE} /dev/zero", []),
        ("exec >&-; sleep 0.05", []),
        ("true", []),
    ],
)
async def test_whole_lines_come_and_nothing_else(script: str, expected: list[bytes]):
    assert await lines_of(script) == expected


async def test_a_long_line_within_the_bound_is_whole():
    # More than asyncio's own readline takes.
    (line,) = await lines_of("head -c 200000 /dev/zero | tr '\\0' x; echo", most=300_000)
    assert line == b"x" * 200_000


async def test_a_flood_of_lines_takes_turns_with_everything_else():
    child = await a_child("yes | head -c 2000000")
    seen, most, before = 0, 0, 0

    async def watch() -> None:
        nonlocal most, before
        while True:
            most, before = max(most, seen - before), seen
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    async for _ in lines(child.stdout, 100):
        seen += 1
    watching.cancel()
    await child.end()
    assert seen == 1_000_000 and most <= PIECE


async def test_the_last_of_what_a_child_says_is_kept_and_no_more():
    child = await a_child("cat >&2; head -c 3000000 /dev/zero; echo end")
    out, err = Tail(1000), Tail(1000)
    assert await hear_out(child, out, err, typed=b"typed", within_s=30) == 0
    assert len(out.data) == 1000 and out.text.endswith("end\n") and not out.whole
    assert (err.text, err.whole) == ("typed", True)


async def test_a_child_that_reads_nothing_and_ends_is_no_failure():
    child = await a_child("exit 3")
    await asyncio.sleep(0)
    assert await hear_out(child, Tail(10), Tail(10), typed=b"x" * 1_000_000, within_s=30) == 3


async def test_one_that_keeps_the_pipes_of_a_child_that_ended_is_not_waited_for(tmp_path: Path):
    pid_file = tmp_path / "pid"
    child = await a_child(f"sleep 600 & echo $! > {pid_file}; echo said; echo why >&2; exit 4")
    out, err = Tail(100), Tail(100)
    assert await hear_out(child, out, err, within_s=300) == 4
    assert (out.text, err.text) == ("said\n", "why\n")
    assert not_running(int(pid_file.read_text()))


async def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path):
    pid_file = tmp_path / "pid"
    child = await a_child(f"sleep 600 & echo $! > {pid_file}; echo said; wait")
    out = Tail(100)
    with pytest.raises(TimeoutError):
        await hear_out(child, out, Tail(100), within_s=0.5)
    assert child.status is not None and out.text == "said\n"
    assert not_running(int(pid_file.read_text()))


async def test_the_end_of_a_child_is_seen_though_its_pipes_are_open():
    child = await a_child("sleep 600 & disown; exit 0")
    assert await child.ended_within(30)
    child.kill_session()
    await child.end()
    sleeping = await a_child("sleep 600")
    assert not await sleeping.ended_within(0.05)
    sleeping.send(signal.SIGKILL)
    assert await sleeping.ended_within(30)
    await sleeping.end()


def not_running(pid: int) -> bool:
    """Whether it ended; a container's first process may leave it a zombie."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("banner", ["yes >&2 & sleep 0.2; kill %1; wait", "printf '\\xff\\xfe' >&2"])
async def test_an_ssh_that_floods_or_babbles_is_judged_by_its_status(tmp_path: Path, banner: str):
    code, text = await an_ssh(tmp_path, f"{banner}; echo 'Permission denied (publickey).' >&2; exit 255")
    assert code == FAILED and text.endswith("Permission denied (publickey).\n") and len(text) <= 64 * 1024


async def test_a_helper_that_ssh_leaves_behind_holds_up_no_job(tmp_path: Path):
    assert await an_ssh(tmp_path, "sleep 600 & exit 0") == (0, "")


async def an_ssh(folder: Path, script: str) -> tuple[int, str]:
    """What the queen hears of a host whose ssh is this script."""
    program = folder / "ssh"
    program.write_text(f"#!/bin/bash\n{script}\n")
    program.chmod(0o755)
    host = Host("h", "h", 22, "u", {}, "rest", "h", 8081)
    setup = SshSetup(folder / "key", folder / "known_hosts", 5)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return await Ssh(host, setup, environment).run("true", typed="secret")
