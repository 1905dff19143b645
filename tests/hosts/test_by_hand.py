"""The door for those who know Ansible: bare hosts, one inventory, `ansible-playbook playbooks/site.yml`.

The tests are one story, each going on from where the one before it ended.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import TypeVar

import pytest

from llama_orch.client import NotTheService
from llama_orch.client.hive import Hive
from llama_orch.client.queen import Queen
from llama_orch.client.worker import Worker as WorkerClient
from llama_orch.contract.errors import ApiError, Unauthorized
from llama_orch.contract.hive import SpawnRequest, Worker, WorkerStatus
from llama_orch.contract.inference import ChatMessage, ChatRequest, CompletionRequest
from llama_orch.contract.queen import Job, JobStatus, Node, NodeStatus
from llama_orch.demo_model import DEMO_SENTENCE, expected_completion, write_demo_model
from tests.support.gguf.models import slow_model
from tests.support.hub.server import Hub

from .fixtures import KeyPair
from .images import say
from .machines import Fleet
from .site import ROOT, Run, Site

pytestmark = pytest.mark.hosts

T = TypeVar("T")
DEMO, SLOW = "hf:demo/tiny", "hf:demo/slow"
CHAT = {"name": "chat", "model_ref": DEMO, "backend": "cpu", "threads": 1}
SPARE = {**CHAT, "name": "spare"}
LONG = {"name": "long", "model_ref": SLOW, "backend": "cpu", "threads": 1, "ctx_per_slot": 4096}
HIVES = ("one", "two")
PATIENCE_S = 180.0


@pytest.fixture(scope="module")
def site(fleet: Fleet, login_key: KeyPair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Bare hosts for two hives and a queen, one without Python, and what a user would write about them."""
    subprocess.run(
        [sys.executable, "-m", "llama_orch.wheelhouse", "build", "--python=3.11", "--python=3.13"],
        cwd=ROOT, check=True, capture_output=True, timeout=1800,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("site")
    suites = {"one": ("bookworm", "full"), "two": ("trixie", "none"), "head": ("bookworm", "full")}
    hosts = {
        name: fleet.boot(name, suite=suite, python=python, authorized_keys=[login_key.public])
        for name, (suite, python) in suites.items()
    }
    with Hub(fleet.address) as hub:
        hub.add_repo("demo/tiny", {"tiny-Q4_K_M.gguf": write_demo_model(folder / "tiny.gguf")})
        hub.add_repo("demo/slow", {"slow-Q4_K_M.gguf": slow_model(folder / "slow.gguf", blocks=1)})
        opened = Site(folder, login_key, hosts, queen="head")
        opened.variables = {
            "hive_hub_endpoint": hub.url,
            "hive_reserve_ram_bytes": 2**28,
            "hive_models": [{"model_ref": DEMO}],
            "hive_workers": [CHAT],
        }
        opened.of_host["one"] = {"hive_workers": [CHAT, LONG, SPARE]}
        yield opened
        opened.hang_up()
    for name in hosts:
        fleet.remove(name)


def hive(site: Site, name: str) -> Hive:
    return Hive(f"http://{site.hosts[name].address}:8081", site.secrets()[f"hives/{name}"])


def queen(site: Site) -> Queen:
    return Queen(f"http://{site.hosts['head'].address}:8080", site.secrets()["api-token"])


async def workers(site: Site, name: str) -> dict[str | None, Worker]:
    async with hive(site, name) as client:
        return {worker.name: worker for worker in await client.list_workers()}


def talk(site: Site, worker: Worker) -> WorkerClient:
    assert worker.url
    return WorkerClient(worker.url, site.secrets()["inference-token"])


async def until(true: Callable[[], Awaitable[T | None]]) -> T:
    """Ask again until there is an answer; a hive that is not up yet is asked again too."""
    deadline = time.monotonic() + PATIENCE_S
    last: object = None
    while time.monotonic() < deadline:
        try:
            if found := await true():
                return found
        except ApiError as error:
            last = error.message
        await asyncio.sleep(0.1)
    raise AssertionError(f"not within {PATIENCE_S:.0f} s; the last error was {last}")


async def idle(site: Site, name: str, worker: str, after: Worker | None = None) -> Worker:
    """The worker once it waits for work, `after` another life of it."""

    async def look() -> Worker | None:
        found = (await workers(site, name)).get(worker)
        new = found is not None and (after is None or found.pid != after.pid)
        return found if new and found and found.status == WorkerStatus.IDLE else None

    return await until(look)


def must_succeed(run: Run) -> Run:
    assert run.status == 0, run.output[-6000:]
    assert set(run.counts) >= set(HIVES)
    return run


async def test_a_look_without_changes_says_what_would_be_done(site: Site) -> None:
    run = must_succeed(site.play("site", "--check", "--diff", "--limit=hives"))
    assert run.counts["one"]["changed"] >= 5
    assert '+hive_id = "one"' in run.output
    assert "+ExecStart=/opt/llama-orch/current/bin/llama-orch-hive" in run.output
    assert "two" in run.output
    assert "no whole Python" in run.output

    assert not (site.folder / "secrets").exists()
    for host in site.hosts.values():
        there = host.run(
            "ls -d /opt/llama-orch /etc/llama-orch /var/lib/llama-orch /usr/bin/python3; id llama-orch-hive"
        )
        assert there.stdout.strip() in {"", "/usr/bin/python3"}


async def test_one_run_makes_bare_hosts_answer(site: Site) -> None:
    began = time.monotonic()
    run = must_succeed(site.play("site"))
    say(f"bare to a queen and workers on two hives: {run.seconds:.1f} s")
    for name in HIVES:
        chat = (await workers(site, name))["chat"]
        assert chat.status == WorkerStatus.IDLE
        async with talk(site, chat) as client:
            request = CompletionRequest(prompt="A", max_tokens=30, temperature=0)
            pieces: list[str] = []
            async with aclosing(client.complete_streamed(request)) as stream:
                async for piece in stream:
                    if not pieces:
                        say(f"bare to the first token of {name}: {time.monotonic() - began:.1f} s")
                    pieces += [choice.text for choice in piece.choices]
            assert "".join(pieces) == expected_completion("A", 30)
            question = ChatRequest(messages=[ChatMessage(role="user", content="Who are you?")])
            answer = await client.chat(question)
            assert answer.choices[0].message.content == DEMO_SENTENCE

    said = run.output
    for path, secret in site.secrets().items():
        assert secret not in said, f"{path} was printed"
        assert (site.folder / "secrets" / path).stat().st_mode & 0o77 == 0


async def test_a_worker_opens_to_the_inference_token_only(site: Site) -> None:
    chat = (await workers(site, "one"))["chat"]
    assert chat.url
    secrets = site.secrets()
    assert len(set(secrets.values())) == 6, "each machine has tokens of its own"
    for token in (None, secrets["hives/one"], secrets["inference/two"], secrets["api-token"], "0123456789abcdef0123"):
        async with WorkerClient(chat.url, token) as client:
            with pytest.raises(Unauthorized if token is None else NotTheService):
                await client.complete(CompletionRequest(prompt="A", max_tokens=1))
    async with Hive(f"http://{site.hosts['two'].address}:8081", secrets["hives/one"]) as client:
        with pytest.raises(NotTheService):
            await client.list_workers()


async def test_a_second_run_changes_nothing(site: Site) -> None:
    before = {name: await workers(site, name) for name in HIVES}
    run = must_succeed(site.play("site"))
    assert run.changed == {"one": 0, "two": 0, "head": 0}, run.output
    after = {name: await workers(site, name) for name in HIVES}
    for name in HIVES:
        assert {(w.id, w.pid, w.started_at) for w in before[name].values()} == {
            (w.id, w.pid, w.started_at) for w in after[name].values()
        }


@pytest.mark.parametrize("tag", ["driver", "release", "config", "workers"])
async def test_a_tag_chooses_what_a_run_does(site: Site, tag: str) -> None:
    run = site.play("hive", f"--tags={tag}", "--limit=one")
    assert (run.status, run.changed) == (0, {"one": 0}), run.output[-6000:]
    assert ("[preflight : Look at the host]" in run.output) == (tag != "workers")
    assert ("[common : Switch to the release]" in run.output) == (tag == "release")
    assert ("[hive : Write the settings]" in run.output) == (tag == "config")
    assert ("[hive : Start the agent]" in run.output) == (tag in {"release", "config"})
    if tag != "workers":
        return
    # One that the site does not declare any more is stopped, and started again with the rest.
    before = await workers(site, "one")
    run = site.play("hive", "--tags=workers", "--limit=one", "-e", '{"hive_workers": []}')
    assert run.status == 0 and not await workers(site, "one"), run.output[-6000:]
    run = site.play("hive", "--tags=workers", "--limit=one")
    assert run.status == 0 and run.changed["one"] > 0, run.output[-6000:]
    assert set(await workers(site, "one")) == set(before)


async def test_the_installed_queen_sees_what_was_made_by_hand(site: Site) -> None:
    async def all_active() -> list[Node] | None:
        async with queen(site) as client:
            nodes = await client.list_nodes()
        return nodes if {node.status for node in nodes} == {NodeStatus.ACTIVE} else None

    nodes = await until(all_active)
    assert sorted(node.node_name for node in nodes) == sorted(HIVES)
    for node in nodes:
        assert node.hive is not None
        assert node.hive.hive_id == node.node_name
        assert node.source == "inventory"
        assert node.last_error is None


async def test_the_installed_queen_runs_the_same_playbooks(site: Site) -> None:
    before = await workers(site, "two")
    async with queen(site) as client:
        job = await client.provision_node("two")

        async def ended() -> Job | None:
            found = await client.get_job(job.job_id)
            return found if found.ended_at else None

        last = await until(ended)
        assert (last.status, last.error) == (JobStatus.SUCCEEDED, None)
        events = [event async for event in client.job_events(job.job_id)]
    changed = [event.task for event in events if event.outcome == "changed"]
    assert changed == [], "by hand everything was done already"
    assert {w.pid for w in (await workers(site, "two")).values()} == {w.pid for w in before.values()}


async def test_what_the_inventory_declares_is_what_runs(site: Site) -> None:
    async with hive(site, "one") as client:
        mine = await client.spawn_worker(SpawnRequest(name="mine", model_ref=DEMO, backend="cpu", threads=1))
    await idle(site, "one", "mine")
    before = await workers(site, "one")

    # What drifted is put right as well.
    loose = "/etc/llama-orch/secrets/api-token /var/lib/llama-orch/models"
    site.hosts["one"].run(f"chmod 0777 {loose}", check=True)
    site.of_host["one"] = {"hive_workers": [{**CHAT, "slots": 2}, LONG]}
    run = must_succeed(site.play("site", "--limit=hives"))
    assert site.hosts["one"].run(f"stat --format=%a {loose}").stdout.split() == ["600", "755"]
    assert run.changed["one"] > 0
    assert run.changed["two"] == 0, run.output
    after = await workers(site, "one")
    assert set(after) == {"chat", "long", "mine"}, "one that a user started by REST is none of the inventory's business"
    assert (after["chat"].slots, after["chat"].status) == (2, WorkerStatus.IDLE)
    assert after["chat"].id != before["chat"].id
    assert {(w.id, w.pid) for w in after.values() if w.name != "chat"} == {
        (before[name].id, before[name].pid) for name in ("long", "mine")
    }
    for gone in ("chat", "spare"):
        assert site.hosts["one"].run(["test", "-d", f"/proc/{before[gone].pid}"]).returncode == 1
    async with hive(site, "one") as client:
        await client.stop_worker(mine.id)


async def test_a_restart_of_the_agent_breaks_no_stream(site: Site) -> None:
    host = site.hosts["one"]
    before = (await workers(site, "one"))["long"]
    async with hive(site, "one") as client:
        agent = (await client.info()).pid
    count = 600
    text, restarted_at = "", -1
    async with talk(site, before) as client:
        request = CompletionRequest(prompt="a", max_tokens=count, temperature=0)
        restart: asyncio.Task[object] | None = None
        async with aclosing(client.complete_streamed(request)) as stream:
            async for piece in stream:
                text += "".join(choice.text for choice in piece.choices)
                if restart is None:
                    restart = asyncio.create_task(
                        asyncio.to_thread(host.run, "systemctl restart llama-orch-hive", check=True)
                    )
                elif restart.done() and restarted_at < 0:
                    restarted_at = len(text)
        assert restart is not None
        await restart
    assert text == expected_completion("a", count)
    assert 0 < restarted_at < count, "the stream ended before the agent was up again: make it longer"

    after = await idle(site, "one", "long")
    assert (after.id, after.pid, after.started_at, after.restarts) == (before.id, before.pid, before.started_at, 0)
    async with hive(site, "one") as client:
        assert (await client.info()).pid != agent


async def test_a_worker_killed_while_the_agent_was_down_is_reported(site: Site) -> None:
    host = site.hosts["one"]
    before = (await workers(site, "one"))["long"]
    host.run("systemctl stop llama-orch-hive", check=True)
    assert host.run(["test", "-d", f"/proc/{before.pid}"]).returncode == 0, "the worker outlives its agent"
    host.run(["kill", f"-{signal.SIGKILL}", str(before.pid)], check=True)
    host.run("systemctl start llama-orch-hive", check=True)

    after = await idle(site, "one", "long", after=before)
    assert after.id == before.id
    assert after.restarts == 1
    assert after.last_error is not None
    assert "SIGKILL" in after.last_error.message
    async with talk(site, after) as client:
        answer = await client.complete(CompletionRequest(prompt="x", max_tokens=4, temperature=0))
    assert answer.choices[0].text == expected_completion("x", 4)


# A driver that does nothing but write down what it was asked.
DRIVER = """
for tool in modinfo modprobe nvidia-smi; do
  printf '#!/bin/sh\necho "%s $*" >> /root/asked\n' $tool > /usr/local/sbin/$tool
  chmod +x /usr/local/sbin/$tool
done
"""


async def test_remedies_go_through_where_they_can_and_say_why_where_not(site: Site) -> None:
    host, before = site.hosts["one"], await workers(site, "one")
    refused = site.play("reload_driver", "--limit=one")
    assert (refused.status, refused.changed) == (2, {"one": 0})
    assert "[no_driver] one has no NVIDIA driver" in refused.output

    host.run(DRIVER, check=True)
    async with hive(site, "one") as client:
        agent = (await client.info()).pid
    run = site.play("reset_gpu", "--limit=one", "-e", "gpu_remedy_gpu=GPU-1")
    assert run.status == 0, run.output[-6000:]
    assert "nvidia-smi --gpu-reset --id=GPU-1" in host.run("cat /root/asked").stdout.splitlines()
    async with hive(site, "one") as client:
        assert (await client.info()).pid != agent, "the agent holds the driver open"
    after = await workers(site, "one")
    assert {w.id: w.pid for w in after.values()} == {w.id: w.pid for w in before.values()}, "the CPU's serve on"

    # As after a run that was ended half way: the hive is asked only once it runs again.
    cut = "systemctl stop llama-orch-hive; echo nvidia-persistenced > /run/llama-orch-gpu-remedy.stopped"
    host.run(cut, check=True)
    run = site.play("reset_gpu", "--limit=one")
    assert "[nothing_to_reset] the hive on one names no GPU that needs a reset" in " ".join(run.output.split())
    host.run("rm /run/llama-orch-gpu-remedy.stopped; systemctl stop llama-orch-hive", check=True)
    run = site.play("resume", "--limit=one")
    assert (run.status, run.changed) == (0, {"one": 1}), run.output[-6000:]
    async with hive(site, "one") as client:
        assert await client.info()

    run = site.play("collect_gpu_report", "--limit=one")
    assert run.status == 0, run.output[-6000:]
    (report,) = (site.folder / "reports").glob("one-*.txt")
    text = report.read_text()
    assert "===== nvidia-smi -q\n" in text
    assert '"nvml": {' in text
    host.run("rm /usr/local/sbin/* /root/asked", check=True)


# Workers that the kernel holds, as a GPU that fell off the bus leaves them.
HELD = """
cat > /usr/local/sbin/python3 << 'END'
#!/bin/sh
[ "$3" != all ] || { cat > /dev/null; echo workers survive SIGKILL >&2; exit 1; }
exec /usr/bin/python3 "$@"
END
chmod +x /usr/local/sbin/python3
"""


async def test_where_a_reboot_fails_the_hive_serves_again(site: Site) -> None:
    host, before = site.hosts["two"], (await workers(site, "two"))["chat"]
    host.run("mv /usr/sbin/shutdown /root", check=True)
    run = site.play("reboot", "--limit=two")
    host.run("mv /root/shutdown /usr/sbin", check=True)
    assert run.status == 2, run.output[-6000:]
    assert 'Unable to find command "shutdown"' in " ".join(run.output.split())
    after = await idle(site, "two", "chat", after=before)
    assert (after.id, after.restarts) == (before.id, before.restarts + 1)


async def test_a_reboot_drains_first_and_waits_until_the_hive_is_back(site: Site) -> None:
    host, before = site.hosts["two"], (await workers(site, "two"))["chat"]
    host.run(HELD, check=True)
    began = int(time.time())
    running = asyncio.create_task(asyncio.to_thread(site.play, "reboot", "--limit=two"))
    # What boots the test host again is this test; a real machine does it by itself.
    while host.running and not running.done():  # noqa: ASYNC110  a machine that goes off tells no event
        await asyncio.sleep(0.2)
    if not running.done():
        await asyncio.to_thread(host.boot_again)
    run = await running
    assert run.status == 0, run.output[-6000:]
    assert "workers survive SIGKILL. Only a reboot ends it." in run.output, run.output[-9000:]
    host.run("rm /usr/local/sbin/python3", check=True)
    say(f"a reboot by its playbook: {run.seconds:.1f} s")
    after = await idle(site, "two", "chat")
    assert (after.id, after.restarts) == (before.id, before.restarts + 1)
    assert after.last_error is not None
    assert after.last_error.code == "machine_restarted"

    # A job that began before that, and goes on only now, has nothing left to do.
    run = site.play("reboot", "--limit=two", "-e", f"gpu_remedy_began={began}")
    assert (run.status, run.changed) == (0, {"two": 0}), run.output[-6000:]
    assert (await workers(site, "two"))["chat"].pid == after.pid


async def test_workers_come_back_after_a_power_cut(site: Site) -> None:
    host = site.hosts["two"]
    before = (await workers(site, "two"))["chat"]
    host.power_cut()
    began = time.monotonic()
    await asyncio.to_thread(host.boot_again)

    after = await idle(site, "two", "chat")
    say(f"power on to an idle worker: {time.monotonic() - began:.1f} s")
    assert after.id == before.id
    assert after.started_at
    assert before.started_at
    assert after.started_at > before.started_at
    async with talk(site, after) as client:
        answer = await client.complete(CompletionRequest(prompt="0", max_tokens=12, temperature=0))
    assert answer.choices[0].text == expected_completion("0", 12)
    assert host.run("systemctl --failed --no-legend").stdout == ""


async def test_removing_leaves_nothing(site: Site) -> None:
    run = must_succeed(site.play("remove", "-e", "remove_models=true"))
    say(f"removing two hives: {run.seconds:.1f} s")
    for host in (site.hosts[name] for name in HIVES):
        left = host.run(
            "find / -xdev \\( -path '*llama?orch*' -o -nouser -o -nogroup \\) ! -path '/home/llama-orch*' "
            "! -path /etc/sudoers.d/90-llama-orch; find /proc -maxdepth 1 -nouser; "
            "grep -sl -e '[/]opt/llama-orch' -e '[l]lama_orch[.]' /proc/[0-9]*/cmdline; "
            "systemctl list-unit-files --no-legend 'llama-orch*'; systemctl --failed --no-legend; "
            "getent passwd llama-orch-hive; getent group llama-orch-hive; ss -Hltn | grep -v ':22 '"
        )
        assert left.stdout == "", host.name
        assert host.run("getent passwd llama-orch").stdout == "llama-orch:x:1000:1000::/home/llama-orch:/bin/bash\n"
    again = must_succeed(site.play("remove"))
    assert again.changed == {"one": 0, "two": 0}, again.output
