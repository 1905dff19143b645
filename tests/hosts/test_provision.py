"""The door by REST: bare hosts become hives by one POST each, and what goes wrong is said with what to do.

The tests are one story, each going on from where the one before it ended.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from unittest.mock import ANY

import pytest
import yaml

from llama_orch.cli.first_answer import QUESTION
from llama_orch.client.hive import Hive
from llama_orch.client.worker import Worker as WorkerClient
from llama_orch.contract.hive import SpawnRequest, Worker, WorkerStatus
from llama_orch.contract.inference import ChatMessage, ChatRequest, CompletionRequest
from llama_orch.demo_model import expected_completion, write_demo_model
from tests.support.gguf.real_model import real_model
from tests.support.hub.server import Hub
from tests.support.queen_process import Api, QueenProcess

from .host import Host
from .images import say
from .machines import Fleet
from .site import ROOT

pytestmark = pytest.mark.hosts

DEMO, REAL = "hf:demo/tiny", "hf:real/quantised"
PASSWORD = "sesame open please"
PATIENCE_S = 180.0


@dataclass
class Rest:
    """A queen, and hosts that know nothing but its public key."""

    queen: QueenProcess
    hosts: dict[str, Host]

    def body(self, name: str) -> dict[str, object]:
        """The seed's four fields."""
        return {
            "node_name": name,
            "ssh_host": self.hosts[name].address,
            "ssh_port": 22,
            "ssh_user": "llama-orch",
        }

    def hive(self, name: str) -> Hive:
        """The hive on that host, with its own token."""
        token = (self.queen.secrets / "hives" / name).read_text().strip()
        return Hive(f"http://{self.hosts[name].address}:8081", token)

    def set(self, **variables: object) -> None:
        """Write the site's variables as a user would."""
        folder = self.queen.inventory / "group_vars"
        folder.mkdir(exist_ok=True)
        (folder / "hives.yml").write_text(yaml.safe_dump(variables))


@pytest.fixture(scope="module")
def rest(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    subprocess.run(
        [sys.executable, "-m", "llama_orch.wheelhouse", "build", "--part=hive", "--python=3.11", "--python=3.13"],
        cwd=ROOT, check=True, capture_output=True, timeout=1800,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("rest")
    queen = QueenProcess(folder, project=ROOT, probe_interval_s=1, ssh_connect_timeout_s=5)
    queen.start()
    key = (queen.secrets / "ssh" / "id_ed25519.pub").read_text().strip()
    hosts = {
        "old": fleet.boot("old", suite="bookworm", authorized_keys=[key]),
        "bare": fleet.boot("bare", suite="trixie", python="none", authorized_keys=[key]),
        "odd": fleet.boot(
            "odd",
            authorized_keys=[key],
            users={"llama-orch": {"sudo": "password", "password": PASSWORD}, "guest": {"sudo": None}},
        ),
    }
    with Hub(fleet.address) as hub:
        tiny = write_demo_model(folder / "tiny.gguf")
        hub.add_repo("demo/tiny", {"tiny-Q4_K_M.gguf": tiny})
        real = real_model()
        hub.add_repo("real/quantised", {real.name: real})
        hub.add_repo("TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF", {"tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf": tiny})
        opened = Rest(queen, hosts)
        opened.set(hive_hub_endpoint=hub.url, hive_reserve_ram_bytes=2**28)
        yield opened
    queen.end()
    for name in hosts:
        fleet.remove(name)


@pytest.fixture
async def api(rest: Rest) -> AsyncIterator[Api]:
    async with rest.queen.client() as api:
        yield api


async def provisioned(api: Api, name: str, body: object = None) -> dict[str, Any]:
    """Provision again and wait for the job's end."""
    status, job = await api.call("POST", f"/api/v1/nodes/{name}/provision", body)
    assert status == 200, job
    return await api.ended(job["job_id"], PATIENCE_S)


async def serving(rest: Rest, name: str, model_ref: str, slots: int) -> Worker:
    """Spawn a worker, which downloads its model first, and wait until it serves."""
    async with rest.hive(name) as hive:
        worker = await hive.spawn_worker(SpawnRequest(model_ref=model_ref, backend="cpu", device=0, slots=slots))
        deadline = time.monotonic() + 60
        while worker.status is not WorkerStatus.IDLE:
            if worker.status is WorkerStatus.FAILED or time.monotonic() > deadline:
                log = rest.hosts[name].run(f"tail -n 30 /var/log/llama-orch/worker-{worker.id}.log").stdout
                raise AssertionError(f"{worker.status}, not idle: {worker.last_error}\n{log}")
            await asyncio.sleep(0.1)
            worker = await hive.get_worker(worker.id)
    return worker


def client_of(rest: Rest, worker: Worker) -> WorkerClient:
    assert worker.url
    return WorkerClient(worker.url, (rest.queen.secrets / "inference-token").read_text().strip())


async def talk(rest: Rest, name: str) -> Worker:
    """Spawn the seed's worker and hear it say exactly what it must."""
    worker = await serving(rest, name, DEMO, slots=4)
    async with client_of(rest, worker) as client:
        answer = await client.complete(CompletionRequest(prompt="A", max_tokens=30, temperature=0))
    assert answer.choices[0].text == expected_completion("A", 30)
    return worker


async def test_two_posts_make_two_bare_hosts_hives_that_answer(rest: Rest, api: Api) -> None:
    began = time.monotonic()
    answers = [await api.call("POST", "/api/v1/nodes", rest.body(name)) for name in ("old", "bare")]
    assert [status for status, _ in answers] == [200, 200]
    story = [event async for event in api.events(answers[0][1]["job_id"])]
    statuses = set()
    for _, node in answers:
        job = await api.ended(node["job_id"], PATIENCE_S)
        assert job["status"] == "succeeded", job["error"]
        shown = await api.node(node["node_name"])
        statuses.add(shown["status"])
        assert shown["host_key"]["type"] == "ssh-ed25519" and shown["hive"]["hive_id"] == node["node_name"]
        assert shown["hive"]["devices"]["cpu"]["cores"] >= 1
    assert statuses == {"active"}
    say(f"two bare hosts by REST to active: {time.monotonic() - began:.1f} s")

    percentages = [event["percentage"] for event in story]
    assert percentages == sorted(percentages) and percentages[-1] == 100
    assert len({event["task"] for event in story if event["kind"] == "task"}) > 10
    took = [event["at"] for event in story]
    assert took == sorted(took) and took[0] != took[-1]
    for name in ("old", "bare"):
        await talk(rest, name)
    say(f"two bare hosts by REST to the first answer of both: {time.monotonic() - began:.1f} s")
    idle = {"total": 1, "idle": 1, "busy": 0}
    await api.until(lambda node: node["hive"]["workers"] == idle, "/api/v1/nodes/old")

    secrets = [path.read_text().strip() for path in rest.queen.secrets.rglob("*") if path.is_file()]
    told = str(story) + rest.queen.log()
    assert not any(secret in told for secret in secrets)


async def test_a_real_model_answers_on_a_host(rest: Rest) -> None:
    worker = await serving(rest, "bare", REAL, slots=1)
    question = ChatRequest(messages=[ChatMessage(role="user", content=QUESTION)], max_tokens=40, temperature=0)
    async with client_of(rest, worker) as client:
        answer = await client.chat(question)
    assert "Paris" in str(answer.choices[0].message.content)
    async with rest.hive("bare") as hive:
        await hive.stop_worker(worker.id)


async def test_the_documented_curl_lines_work_on_a_hive_as_they_stand(rest: Rest) -> None:
    spawn, health, metrics = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/api.md").read_text(), re.DOTALL | re.M)
    host = rest.hosts["old"]
    host.run("apt-get update -q && apt-get install -q -y --no-install-recommends curl", check=True)

    def run(lines: str) -> str:
        return host.run(lines, check=True).stdout

    worker = Worker.model_validate_json(run(spawn))
    assert (worker.model_ref, worker.backend, worker.slots) == ("hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF", "cpu", 4)
    assert json.loads(run(health)) == {"status": "healthy", "workers": ANY}
    assert 'llama_orch_hive_workers{status="idle"}' in run(metrics)
    async with rest.hive("old") as hive:
        await hive.stop_worker(worker.id)


async def test_provisioning_again_keeps_the_worker(rest: Rest, api: Api) -> None:
    async with rest.hive("old") as hive:
        (before,) = await hive.list_workers()
    began = time.monotonic()
    job = await provisioned(api, "old")
    say(f"provisioning a hive again: {time.monotonic() - began:.1f} s")
    assert job["status"] == "succeeded", job["error"]
    async with rest.hive("old") as hive:
        (after,) = await hive.list_workers()
    assert (after.id, after.pid) == (before.id, before.pid)


async def test_sudo_is_asked_for_its_password(rest: Rest, api: Api) -> None:
    _, node = await api.call("POST", "/api/v1/nodes", rest.body("odd"))
    job = await api.ended(node["job_id"], PATIENCE_S)
    assert job["error"]["code"] == "sudo_password_missing" and "sudo_password" in job["error"]["what_to_do"]
    job = await provisioned(api, "odd", {"sudo_password": "not the password"})
    assert job["error"]["code"] == "host_key_unconfirmed"
    key = rest.hosts["odd"].run("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub", check=True).stdout.split()[1]
    assert key in job["error"]["message"]
    job = await provisioned(api, "odd", {"sudo_password": "not the password", "host_key": key})
    assert job["error"]["code"] == "sudo_password_wrong"
    assert (await api.node("odd"))["status"] == "failed"
    guest = rest.body("odd") | {"node_name": "guest", "ssh_user": "guest", "sudo_password": "anything"}
    _, node = await api.call("POST", "/api/v1/nodes", guest)
    job = await api.ended(node["job_id"], PATIENCE_S)
    assert job["error"]["code"] in {"sudo_not_allowed", "sudo_password_wrong"}
    _, job = await api.call("DELETE", "/api/v1/nodes/guest?force=true")
    assert (await api.ended(job["job_id"], PATIENCE_S))["status"] == "succeeded"


async def test_what_the_host_lacks_is_said(rest: Rest, api: Api) -> None:
    host = rest.hosts["odd"]
    release = host.read_file("/etc/os-release")
    host.run("rm /etc/os-release", check=True)
    host.write_file("/etc/os-release", 'ID=plan9\nVERSION_ID="4"\nPRETTY_NAME="Plan 9"\n')
    job = await provisioned(api, "odd", {"sudo_password": PASSWORD})
    assert (job["status"], job["error"]["code"]) == ("failed", "unsupported_distribution")
    assert "Plan 9" in job["error"]["message"] and job["error"]["host"] == "odd" and job["error"]["task"]
    host.write_file("/etc/os-release", release)

    host.run("mount -t tmpfs -o size=1M tmpfs /opt", check=True)
    job = await provisioned(api, "odd", {"sudo_password": PASSWORD})
    assert (job["status"], job["error"]["code"]) == ("failed", "disk_full")
    host.run("umount /opt", check=True)
    kept = [path for path in rest.queen.data.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert kept == [] and PASSWORD not in rest.queen.log()


async def test_a_lost_line_fails_the_job_and_the_next_one_goes_on(rest: Rest, api: Api) -> None:
    host = rest.hosts["old"]
    host.cut_cable()
    job = await provisioned(api, "old")
    assert (job["status"], job["error"]["code"]) == ("failed", "unreachable_host")
    host.mend_cable()
    host.wait_for_ssh()
    job = await provisioned(api, "old")
    assert job["status"] == "succeeded", job["error"]
    await api.until(lambda node: node["status"] == "active", "/api/v1/nodes/old")


async def test_a_dead_hive_shows_and_comes_back(rest: Rest, api: Api) -> None:
    host = rest.hosts["old"]
    host.run("systemctl stop llama-orch-hive", check=True)
    node = await api.until(lambda node: node["status"] == "unreachable", "/api/v1/nodes/old", 60)
    assert node["last_error"]["code"] == "hive_unreachable"
    host.run("systemctl start llama-orch-hive", check=True)
    await api.until(lambda node: node["status"] == "active", "/api/v1/nodes/old", 60)


async def test_another_host_key_is_refused(rest: Rest, api: Api) -> None:
    host = rest.hosts["old"]
    host.run(
        "rm /etc/ssh/ssh_host_*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key;"
        " systemctl restart ssh.socket ssh.service || systemctl restart ssh",
        check=True,
    )
    before = (await api.node("old"))["host_key"]["fingerprint"]
    job = await provisioned(api, "old")
    assert (job["status"], job["error"]["code"]) == ("failed", "host_key_changed")
    assert "force=true" in job["error"]["what_to_do"]
    assert (await api.node("old"))["host_key"]["fingerprint"] == before


async def test_a_host_that_is_off_is_forgotten_by_force_alone(rest: Rest, api: Api) -> None:
    rest.hosts["old"].power_cut()
    status, answer = await api.call("DELETE", "/api/v1/nodes/old")
    assert (status, answer["error"]["code"]) == (409, "node_unreachable")
    _, job = await api.call("DELETE", "/api/v1/nodes/old?force=true")
    assert (await api.ended(job["job_id"], PATIENCE_S))["status"] == "succeeded"
    assert (await api.call("GET", "/api/v1/nodes/old"))[0] == 404
    assert rest.hosts["old"].address not in rest.queen.known_hosts()


async def test_delete_takes_the_hive_off_its_host(rest: Rest, api: Api) -> None:
    status, job = await api.call("DELETE", "/api/v1/nodes/bare")
    assert (status, job["kind"]) == (200, "remove")
    job = await api.ended(job["job_id"], PATIENCE_S)
    assert job["status"] == "succeeded", job["error"]
    assert (await api.call("GET", "/api/v1/nodes/bare"))[0] == 404
    host = rest.hosts["bare"]
    assert host.run("systemctl is-active llama-orch-hive").stdout.strip() in {"inactive", "unknown"}
    assert host.run("test -e /opt/llama-orch/current").returncode != 0
    assert "bare" not in rest.queen.registered.read_text()
