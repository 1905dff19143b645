"""A real queen process: what it refuses, what it shows, how it starts and stops."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.queen_process import Api, QueenProcess

HOSTS = "all:\n  children:\n    hives:\n      hosts:\n"


@pytest.fixture(scope="module")
def queen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueenProcess]:
    queen = QueenProcess(tmp_path_factory.mktemp("queen"))
    queen.playbook("hive", "- name: Never reached\n  ansible.builtin.fail:\n")
    queen.hosts(HOSTS + "        mine:\n          ansible_host: 127.0.0.1\n          ansible_port: 9\n")
    queen.start()
    yield queen
    queen.end()


@pytest.fixture
async def api(queen: QueenProcess) -> AsyncIterator[Api]:
    async with queen.client() as api:
        yield api


def seed_body(name: str, **more: object) -> dict[str, object]:
    return {"node_name": name, "ssh_host": "127.0.0.1", "ssh_port": free_port(), "ssh_user": "llama-orch"} | more


async def test_an_unreachable_host_fails_with_what_to_do(queen: QueenProcess, api: Api):
    status, node = await api.call("POST", "/api/v1/nodes", seed_body("nowhere", labels={"zone": "on"}))
    assert status == 200, node
    assert node["status"] in {"registered", "provisioning"} and node["job_id"]
    assert '"nowhere"' in queen.registered.read_text()
    job = await api.ended(node["job_id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "unreachable_host")
    assert job["error"]["what_to_do"]
    node = await api.node("nowhere")
    assert (node["status"], node["last_error"]["code"]) == ("failed", "unreachable_host")
    assert node["labels"] == {"zone": "on"} and node["source"] == "rest"


async def test_the_same_name_again_is_409_with_the_way_on(queen: QueenProcess, api: Api):
    _, node = await api.call("POST", "/api/v1/nodes", seed_body("twice"))
    before = queen.registered.read_bytes()
    for name, source in (("twice", node["job_id"]), ("mine", None)):
        status, answer = await api.call("POST", "/api/v1/nodes", seed_body(name))
        details = answer["error"]["details"]
        assert (status, answer["error"]["code"]) == (409, "node_exists")
        assert details["path"] == f"/api/v1/nodes/{name}/provision"
        assert details["job_id"] == source and details["status"]
    assert queen.registered.read_bytes() == before


async def test_a_failed_node_can_be_provisioned_again(api: Api):
    _, node = await api.call("POST", "/api/v1/nodes", seed_body("again"))
    await api.ended(node["job_id"])
    status, job = await api.call("POST", "/api/v1/nodes/again/provision")
    assert (status, job["kind"]) == (200, "provision") and job["job_id"] != node["job_id"]
    assert (await api.ended(job["job_id"]))["status"] == "failed"
    assert (await api.node("again"))["job_id"] == job["job_id"]
    _, jobs = await api.call("GET", "/api/v1/jobs?node_name=again")
    assert [job["job_id"] for job in jobs["jobs"]] == [job["job_id"], node["job_id"]]


HOSTILE = [
    "{{ lookup('pipe', 'touch /tmp/pwned') }}",
    "-oProxyCommand=touch",
    "a\nb",
    "a\x00b",
    "../../etc/passwd",
    "a b",
    "a\u202eb",
    "\x1b[31m",
    "a;reboot",
    "$(reboot)",
    "",
    "x" * 300,
    "héte",
    "%c0",
]


@pytest.mark.parametrize("field", ["node_name", "ssh_host", "ssh_user"])
async def test_hostile_strings_get_400_and_change_nothing(queen: QueenProcess, api: Api, field: str):
    files = {path: path.read_bytes() for path in queen.inventory.rglob("*") if path.is_file()}
    _, jobs = await api.call("GET", "/api/v1/jobs")
    for text in HOSTILE:
        status, answer = await api.call("POST", "/api/v1/nodes", seed_body("fine") | {field: text})
        assert (status, answer["error"]["code"]) == (400, "invalid_request"), text
        assert answer["error"]["details"]["fields"][0]["field"] == field
    assert {path: path.read_bytes() for path in queen.inventory.rglob("*") if path.is_file()} == files
    assert (await api.call("GET", "/api/v1/jobs"))[1] == jobs


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ssh_port": 0}, "ssh_port"),
        ({"ssh_port": 65536}, "ssh_port"),
        ({"ssh_port": "22"}, "ssh_port"),
        ({"ssh_port": True}, "ssh_port"),
        ({"labels": {"a b": "c"}}, "labels"),
        ({"labels": {"a": "{{ 1 }}"}}, "labels"),
        ({"labels": []}, "labels"),
        ({"sudo_password": "a\nb"}, "sudo_password"),
        ({"sudo_password": ""}, "sudo_password"),
        ({"colour": "red"}, "colour"),
        ({"node_name": "all"}, "node_name"),
        ({"node_name": "hives"}, "node_name"),
        ({"ssh_host": None}, "ssh_host"),
    ],
)
async def test_each_wrong_field_is_named(api: Api, change: dict[str, object], field: str):
    status, answer = await api.call("POST", "/api/v1/nodes", seed_body("fine") | change)
    assert status == 400
    assert answer["error"]["details"]["fields"][0]["field"].startswith(field)


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/api/v1/nodes/none", None, (404, "not_found")),
        ("DELETE", "/api/v1/nodes/none", None, (404, "not_found")),
        ("POST", "/api/v1/nodes/none/provision", None, (404, "not_found")),
        ("GET", "/api/v1/jobs/none", None, (404, "not_found")),
        ("GET", "/api/v1/jobs/none/events", None, (404, "not_found")),
        ("POST", "/api/v1/jobs/none/cancel", None, (404, "not_found")),
        ("POST", "/api/v1/nodes", b"{", (400, "invalid_request")),
        ("POST", "/api/v1/nodes", b"", (400, "invalid_request")),
        ("POST", "/api/v1/nodes", b"[1]", (400, "invalid_request")),
        ("POST", "/api/v1/nodes", b"x" * (1024 * 1024 + 1), (413, "payload_too_large")),
        ("DELETE", "/api/v1/nodes/mine?force=yes", None, (400, "invalid_request")),
        ("GET", "/api/v1/nodes?all=1", None, (400, "invalid_request")),
        ("GET", "/api/v1/nodes?limit=0", None, (400, "invalid_request")),
        ("GET", "/api/v1/nodes?limit=501", None, (400, "invalid_request")),
        ("GET", "/api/v1/jobs?limit=-1", None, (400, "invalid_request")),
        ("GET", "/api/v1/jobs?cursor=x", None, (400, "invalid_request")),
        ("POST", "/api/v1/nodes/mine/provision", b'{"password": "x"}', (400, "invalid_request")),
        ("PUT", "/api/v1/nodes", None, (405, "method_not_allowed")),
        ("GET", "/api/v2/nodes", None, (404, "not_found")),
        ("DELETE", "/api/v1/nodes/mine", None, (409, "node_in_inventory_file")),
        ("DELETE", "/api/v1/nodes/mine?force=true", None, (409, "node_in_inventory_file")),
    ],
)
async def test_what_is_refused(api: Api, method: str, path: str, body: bytes | None, expected: tuple[int, str]):
    status, answer = await api.call(method, path, body)
    assert (status, answer["error"]["code"]) == expected


async def test_delete_of_a_users_host_names_the_file(api: Api):
    _, answer = await api.call("DELETE", "/api/v1/nodes/mine")
    assert answer["error"]["details"]["file"] == "hosts.yml"


async def test_the_token_is_asked_for_everywhere_but_health_and_metrics(queen: QueenProcess):
    async with Api(queen.url, "a-wrong-token-of-length") as stranger:
        assert await stranger.call("GET", "/health") == (200, {"status": "healthy", "version": "0.1.0"})
        assert (await stranger.call("GET", "/metrics"))[0] == 200
        for path in ("/api/v1/nodes", "/api/v1/jobs", "/api/v1/ssh-key", "/openapi.json", "/none"):
            assert (await stranger.call("GET", path))[0] == 401
        assert (await stranger.call("POST", "/api/v1/nodes", seed_body("fine")))[0] == 401


async def test_an_unreachable_node_is_forgotten_by_force_alone(queen: QueenProcess, api: Api):
    _, node = await api.call("POST", "/api/v1/nodes", seed_body("gone"))
    await api.ended(node["job_id"])
    status, answer = await api.call("DELETE", "/api/v1/nodes/gone")
    assert (status, answer["error"]["code"]) == (409, "node_unreachable")
    assert "force=true" in answer["error"]["message"]
    status, job = await api.call("DELETE", "/api/v1/nodes/gone?force=true")
    assert (status, job["kind"]) == (200, "remove")
    assert (await api.ended(job["job_id"]))["status"] == "succeeded"
    assert (await api.call("GET", "/api/v1/nodes/gone"))[0] == 404
    assert '"gone"' not in queen.registered.read_text()


async def test_the_ssh_key_is_the_public_half(queen: QueenProcess, api: Api):
    _, key = await api.call("GET", "/api/v1/ssh-key")
    command = ["ssh-keygen", "-lf", str(queen.secrets / "ssh" / "id_ed25519.pub")]
    shown = await asyncio.to_thread(subprocess.check_output, command, text=True)
    assert key["public_key"].startswith("ssh-ed25519 ") and key["fingerprint"] in shown
    assert (queen.secrets / "ssh" / "id_ed25519").stat().st_mode & 0o777 == 0o600


async def test_lists_come_in_pages_to_who_asks_for_them(api: Api):
    for name in ("page-one", "page-two"):
        _, node = await api.call("POST", "/api/v1/nodes", seed_body(name))
        await api.ended(node["job_id"])
    for path, what, key in (("/api/v1/nodes", "nodes", "node_name"), ("/api/v1/jobs", "jobs", "job_id")):
        _, whole = await api.call("GET", path)
        seen, cursor = [], ""
        while cursor is not None:
            status, page = await api.call("GET", f"{path}?limit=1{cursor and f'&cursor={cursor}'}")
            assert status == 200 and len(page[what]) == 1
            seen += [one[key] for one in page[what]]
            cursor = page["next_cursor"]
        assert seen == [one[key] for one in whole[what]] and len(seen) >= 2
    assert set((await api.call("GET", "/api/v1/nodes"))[1]) == {"nodes", "problems"}, "as it was without pages"
    assert set((await api.call("GET", "/api/v1/jobs?node_name=page-one"))[1]) == {"jobs"}
    _, refused = await api.call("GET", "/api/v1/nodes?limit=many")
    assert refused["error"]["param"] == "limit" and "1 to 500" in refused["error"]["message"]


async def test_metrics_show_every_status(api: Api):
    _, text = await api.call("GET", "/metrics")
    for status in ("registered", "provisioning", "active", "failed", "unreachable", "draining", "removing"):
        assert f'llama_orch_queen_nodes{{status="{status}"}}' in text
    for status in ("queued", "running", "cancelling", "succeeded", "failed", "cancelled"):
        assert f'llama_orch_queen_jobs{{status="{status}"}}' in text


async def test_an_edit_of_hosts_yml_shows_by_itself(tmp_path: Path):
    queen = QueenProcess(tmp_path)
    queen.hosts(HOSTS + "        one:\n          ansible_host: 127.0.0.1\n")
    queen.start()
    try:
        async with queen.client() as api:
            assert [n["node_name"] for n in (await api.call("GET", "/api/v1/nodes"))[1]["nodes"]] == ["one"]
            queen.hosts(HOSTS + "        two:\n          ansible_host: 127.0.0.2\n          ansible_port: 2222\n")
            nodes = await api.until(lambda n: [x["node_name"] for x in n["nodes"]] == ["two"], "/api/v1/nodes")
            assert (nodes["nodes"][0]["ssh_port"], nodes["nodes"][0]["status"]) == (2222, "registered")
            assert nodes["nodes"][0]["source"] == "inventory" and nodes["nodes"][0]["job_id"] is None

            queen.hosts("all: [\n")
            await api.until(lambda text: "llama_orch_queen_inventory_valid 0.0" in text, "/metrics")
            assert (await api.node("two"))["ssh_port"] == 2222
            queen.stop()
            queen.start()
            assert (await api.node("two"))["ssh_port"] == 2222, "the last good view outlives a restart"

            queen.hosts(HOSTS.replace("hosts", "hots") + "        two:\n")
            deadline = time.monotonic() + 10
            while "'hots'" not in queen.log():
                assert time.monotonic() < deadline, "Ansible only warns of this; the queen must not believe it"
                await asyncio.sleep(0.05)
            assert (await api.node("two"))["ssh_port"] == 2222
            queen.hosts(HOSTS + "        two:\n")
            await api.until(lambda node: node["ssh_port"] == 22, "/api/v1/nodes/two")
            assert "llama_orch_queen_inventory_valid 1.0" in (await api.call("GET", "/metrics"))[1]
    finally:
        queen.end()


async def test_a_name_in_both_files_is_the_users(tmp_path: Path):
    queen = QueenProcess(tmp_path)
    queen.start()
    try:
        async with queen.client() as api:
            await api.call("POST", "/api/v1/nodes", seed_body("both"))
            queen.hosts(HOSTS + "        both:\n          ansible_host: 127.0.0.5\n          ansible_port: 2200\n")
            node = await api.until(lambda node: node["source"] == "inventory", "/api/v1/nodes/both")
            assert (node["ssh_host"], node["ssh_port"], node["ssh_user"]) == ("127.0.0.5", 2200, "llama-orch")
            queen.hosts(HOSTS)
            node = await api.until(lambda node: node["source"] == "rest", "/api/v1/nodes/both")
            assert node["ssh_host"] == "127.0.0.1"
    finally:
        queen.end()


def test_it_starts_and_stops_in_time_and_a_second_one_is_refused(tmp_path: Path):
    queen = QueenProcess(tmp_path)
    try:
        queen.start()
        other = QueenProcess(tmp_path / "other", data_dir=str(queen.data))
        with pytest.raises(AssertionError, match="another queen"):
            other.start()
        assert queen.stop() < 10
        assert queen.start() < 10
        assert queen.stop(signal.SIGINT) < 10
    finally:
        queen.end()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "no"], "'port' in flag --port is 'no'"),
        (["--database-url", "mysql://x"], "'database_url'"),
        (["--host", "0.0.0.0", "--api-token-file", "/nonexistent"], "/nonexistent"),
        (["--project-dir", "/nonexistent"], "'project_dir' is /nonexistent"),
        (["--default-ssh-user=-x"], "'default_ssh_user'"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(tmp_path: Path, arguments: list[str], words: str):
    queen = QueenProcess(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "llama_orch.queen", "--config", str(queen.config), *arguments],
        env={"PYTHONPATH": str(Path(__file__).parents[3] / "agent"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2 and words in done.stderr, done.stderr
