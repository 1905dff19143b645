"""`make fleet`: two bare test hosts become hives by REST, and both answer. As root, on Debian.

    python -m tests.hosts.fleet [--exit-after-answer]

Everything is in `.llama-orch/fleet`: a queen of its own, its secrets, the hosts' disks. The hosts have no way out,
so they download the demonstration model from a hub that runs here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from llama_orch.cli import home_files
from llama_orch.cli.chat import stream_answer
from llama_orch.cli.connection import read_token
from llama_orch.cli.first_answer import DEMO_QUESTION, Chosen, make_demo_model, start_worker
from llama_orch.cli.keep_up import keep_up, step
from llama_orch.cli.local import Home
from llama_orch.cli.output import line
from llama_orch.cli.running import Failed, run
from llama_orch.cli.watching import follow_job, problem, told
from llama_orch.client import Hive, Queen
from llama_orch.contract.inference import ChatMessage, ChatRequest
from llama_orch.contract.queen import JobEvent, JobStatus, Node, NodeCreate, NodeStatus
from llama_orch.demo_model import DEMO_SENTENCE
from tests.hosts.images import HostsError
from tests.hosts.machines import Fleet
from tests.support.hub.server import Hub

USER = "llama-orch"
MODEL = Chosen("hf:llama-orch/demo-GGUF", "llama-orch-demo.gguf")
ACTIVE_SECONDS = 60.0


@dataclass
class Guest:
    """A test host on its way to an answer; times are of the monotonic clock."""

    name: str
    suite: str
    python: bool
    posted: float = 0.0
    first_token: float = 0.0


GUESTS = (Guest("debian12", "bookworm", True), Guest("debian13", "trixie", False))


def main() -> int:
    """Run until Ctrl-C; returns the exit status."""
    arguments = _parser().parse_args()
    home = Home(arguments.dir.absolute().resolve(), arguments.queen_port)

    try:
        with _network(home.folder) as (fleet, hub):

            async def story() -> None:
                await _story(home, fleet, hub)

            return run(keep_up(home, story, exit_after_answer=arguments.exit_after_answer))
    except HostsError as error:
        line(f"error: {error}", style="red")
        return 1
    except typer.Exit as end:
        return end.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.hosts.fleet", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path(".llama-orch/fleet"), help="where all of its state is")
    parser.add_argument("--queen-port", type=int, default=8080)
    parser.add_argument("--exit-after-answer", action="store_true", help="stop when both hosts have answered")
    return parser


@contextlib.contextmanager
def _network(folder: Path) -> Iterator[tuple[Fleet, Hub]]:
    with Fleet(folder / "hosts") as fleet:
        try:
            with Hub(bind=fleet.address) as hub:
                yield fleet, hub
        finally:
            # Half a removal would be left to the next run; it takes a second.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            line("Taking the test hosts down")


async def _story(home: Home, fleet: Fleet, hub: Hub) -> None:
    for left in await asyncio.to_thread(home.end_leftovers):
        line(f"Ended {left}, left by an earlier run that could not stop", style="yellow")
    _write_inventory(home, hub)
    home.prepare()
    demo = await make_demo_model(home.folder / "models-demo")
    path = Path(demo.model_ref.removeprefix("file:"))
    hub.add_repo(MODEL.model_ref.removeprefix("hf:"), {path.name: path})

    with step("Starting the queen"):
        (child,) = await home.start("queen")
    line(f"Queen  {child.url}   log {child.log}")
    home.announce()
    async with home.queen() as queen:
        key = (await queen.ssh_key()).public_key
        line("Booting two bare hosts; the first time their images are built, which takes some minutes")
        await asyncio.gather(*(asyncio.to_thread(_boot, fleet, guest, key) for guest in GUESTS))
        began = time.monotonic()
        await _gather_or_cancel([_one_guest(home, queen, fleet, guest) for guest in GUESTS])
    line()
    for guest in GUESTS:
        line(f"{guest.name}: {guest.first_token - guest.posted:.1f} s from POST to the first token")
    line(f"both together: {max(guest.first_token for guest in GUESTS) - began:.1f} s")
    _how_to_go_on(home, fleet)


def _write_inventory(home: Home, hub: Hub) -> None:
    # The hosts of an earlier run are gone, and with them all that a queen knew.
    for old in ("queen", "inventory", "secrets/hives"):
        shutil.rmtree(home.folder / old, ignore_errors=True)
    inventory = home.folder / "inventory"
    text = f"# Written by `make fleet`: the hosts' only way to models.\nhive_hub_endpoint: {hub.url}\n"
    home_files.write(inventory / "group_vars" / "hives.yml", text, mode=0o644)


def _boot(fleet: Fleet, guest: Guest, key: str) -> None:
    fleet.boot(guest.name, suite=guest.suite, python=guest.python, authorized_keys=[key], timeout=60.0)


async def _gather_or_cancel(works: list) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one_guest(home: Home, queen: Queen, fleet: Fleet, guest: Guest) -> None:
    host = fleet.host(guest.name)
    guest.posted = time.monotonic()
    node = await queen.create_node(NodeCreate(node_name=guest.name, ssh_host=host.address, ssh_port=22, ssh_user=USER))
    _say(guest, f"POST /api/v1/nodes answered {node.status}, job {node.job_id}")
    telling = asyncio.ensure_future(_tell_status(queen, guest))
    try:
        job = await queen.get_job(str(node.job_id))
        ended = await follow_job(queen, job, on_event=lambda event: _tell(guest, event))
        if ended.status != JobStatus.SUCCEEDED:
            raise Failed(problem(f"{guest.name}: the job {ended.status}", ended.error))
        node = await _until_active(queen, guest)
    finally:
        telling.cancel()
    assert node.hive is not None
    token = read_token(home.secrets / "hives" / guest.name)
    async with Hive(node.hive.url, token) as hive:
        worker = await start_worker(hive, MODEL, name="fleet", slots=1)
    _say(guest, f"worker {worker.url} on {worker.backend}")
    question = ChatRequest(messages=[ChatMessage(role="user", content=DEMO_QUESTION)])
    # Two answers that stream at the same time cannot be read: each is shown when it is whole.
    answer = await stream_answer(str(worker.url), read_token(home.inference_token_file), question, lambda _: None)
    line(f"{guest.name}: > {DEMO_QUESTION}\n{guest.name}: {answer.text}\n{guest.name}: ({answer})")
    guest.first_token = time.monotonic() - answer.total_s + (answer.first_s or 0.0)
    if answer.text.strip() != DEMO_SENTENCE:
        raise Failed(f"{guest.name} did not give the one answer that its model has, but: {answer.text!r}")


def _tell(guest: Guest, event: JobEvent) -> None:
    if (what := told(event)) is not None:
        _say(guest, f"{event.percentage:3.0f} %  {what}")


def _say(guest: Guest, text: str) -> None:
    line(f"{time.monotonic() - guest.posted:6.1f} s  {guest.name}  {text}")


async def _tell_status(queen: Queen, guest: Guest) -> None:
    status = None
    while True:
        now = (await queen.get_node(guest.name)).status
        if now not in (status, NodeStatus.ACTIVE):
            _say(guest, f"the node is {now}")
        status = now
        await asyncio.sleep(0.1)


async def _until_active(queen: Queen, guest: Guest) -> Node:
    until = time.monotonic() + ACTIVE_SECONDS
    while True:
        node = await queen.get_node(guest.name)
        if node.status == NodeStatus.ACTIVE and node.hive is not None:
            _say(guest, f"the node is {node.status}: hive {node.hive.version} answers at {node.hive.url}")
            return node
        if time.monotonic() > until:
            raise Failed(problem(f"{guest.name} is {node.status} after {ACTIVE_SECONDS:g} s", node.last_error))
        await asyncio.sleep(0.2)


def _how_to_go_on(home: Home, fleet: Fleet) -> None:
    command = shlex.quote(str(Path(sys.executable).with_name("llama-orch")))
    header = f'-H "Authorization: Bearer $(cat {shlex.quote(str(home.api_token_file))})"'
    line("How to go on, from another terminal in this folder:", style="bold")
    for text in (
        f"{command} nodes list",
        *(f"{command} chat --hive {guest.name}" for guest in GUESTS),
        f"curl {header} http://127.0.0.1:{home.queen_port}/api/v1/nodes",
        *(
            f"ssh -i {shlex.quote(str(home.secrets / 'ssh' / 'id_ed25519'))} -o StrictHostKeyChecking=accept-new "
            f"{USER}@{fleet.host(guest.name).address}"
            for guest in GUESTS
        ),
    ):
        line(f"  {text}")
    line("Ctrl-C stops everything and takes the hosts down.", style="bold")


if __name__ == "__main__":
    sys.exit(main())
