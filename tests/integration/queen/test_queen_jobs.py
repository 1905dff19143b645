"""Jobs of a real queen with real playbooks: on this machine, and over ssh to an OpenSSH server on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import sshd
from tests.support.fake_hive import fake_hive
from tests.support.ports import free_port
from tests.support.queen_process import QueenProcess, processes_with
from tests.support.serving import serving

TOKEN = "the-token-of-this-one-hive"
# Host variables of a node that is this machine; its hive is the test's.
LOCAL = """\
all:
  children:
    hives:
      hosts:
        here:
          ansible_connection: local
          ansible_python_interpreter: "{{ ansible_playbook_python }}"
          hive_address: 127.0.0.1
          hive_port: %d
"""
MAKE_TOKEN = f"""\
- name: Make the folder
  ansible.builtin.file:
    path: "{{{{ llama_orch_secrets_dir }}}}/hives"
    state: directory
    mode: "0700"
- name: Write the token
  ansible.builtin.copy:
    content: {TOKEN}
    dest: "{{{{ llama_orch_secrets_dir }}}}/hives/{{{{ inventory_hostname }}}}"
    mode: "0600"
  delegate_to: localhost
"""
PASSED = """\
- name: Note that the run came this far
  ansible.builtin.shell: echo passed >> {log}
  delegate_to: localhost
"""


@pytest.fixture
def queen(tmp_path: Path) -> Iterator[QueenProcess]:
    queen = QueenProcess(tmp_path)
    yield queen
    queen.end()


@pytest.fixture
async def hive() -> AsyncIterator[int]:
    async with serving(fake_hive("here", TOKEN)) as url:
        yield int(url.rpartition(":")[2])


async def test_a_node_of_the_inventory_is_provisioned_and_its_story_is_told(queen: QueenProcess, hive: int):
    queen.hosts(LOCAL % hive)
    queen.playbook("hive", MAKE_TOKEN)
    queen.start()
    async with queen.client() as api:
        assert (await api.node("here"))["status"] == "registered"
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        events = [event async for event in api.events(job["job_id"])]
        job = await api.job(job["job_id"])
        assert (job["status"], job["percentage"], job["error"]) == ("succeeded", 100, None)
        node = await api.node("here")
    assert node["status"] == "active" and node["last_seen"] and node["source"] == "inventory"
    assert node["hive"]["workers"] == {"total": 3, "idle": 2, "busy": 1}
    assert (node["hive"]["hive_id"], node["hive"]["version"]) == ("here", "0.1.0")

    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    percentages = [event["percentage"] for event in events]
    assert percentages == sorted(percentages) and percentages[-1] == 100
    assert (events[-1]["kind"], events[-1]["status"]) == ("end", "succeeded")
    assert [event["play"] for event in events if event["kind"] == "play"] == ["Play hive"]
    done = {event["task"]: event for event in events if event["kind"] == "task" and event["host"] == "here"}
    assert done["Write the token"]["outcome"] == "changed" and done["Write the token"]["duration_s"] > 0
    assert TOKEN not in json.dumps(events) and TOKEN not in queen.log()
    assert list((queen.data / "runs").iterdir()) == []


async def test_a_host_that_somebody_else_made_a_hive_becomes_active(queen: QueenProcess, hive: int):
    queen.hosts(LOCAL % hive)
    queen.start()
    token = queen.secrets / "hives" / "here"
    token.parent.mkdir(mode=0o700)
    token.touch(0o600)
    token.write_text(TOKEN)
    async with queen.client() as api:
        await api.until(lambda node: node["status"] == "active", "/api/v1/nodes/here")
        token.write_text("not-the-token-of-this-hive")
        node = await api.until(lambda node: node["status"] == "unreachable", "/api/v1/nodes/here")
        assert node["last_error"]["code"] == "hive_not_proven"
        token.write_text(TOKEN)
        node = await api.until(lambda node: node["status"] == "active", "/api/v1/nodes/here")
        assert node["last_error"] is None
        queen.hosts(LOCAL.replace("here:", "other:") % hive)
        await api.until(lambda nodes: [n["node_name"] for n in nodes["nodes"]] == ["other"], "/api/v1/nodes")
        (queen.secrets / "hives" / "other").touch(0o600)
        (queen.secrets / "hives" / "other").write_text(TOKEN)
        await api.until(lambda text: 'failures_total{reason="wrong_hive"} 0.0' not in text, "/metrics")
        assert (await api.node("other"))["status"] == "registered"


async def test_a_failed_task_is_named_with_its_reason(queen: QueenProcess):
    queen.hosts(LOCAL % free_port())
    queen.playbook(
        "hive",
        "- name: Look at the disk\n  ansible.builtin.fail:\n"
        '    msg: "[disk_full] here has 5 bytes free.\\nDo: Free some space there."\n',
    )
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        job = await api.ended(job["job_id"])
        error = (await api.node("here"))["last_error"]
    assert job["status"] == "failed" and error == job["error"]
    assert (error["code"], error["task"], error["host"]) == ("disk_full", "Look at the disk", "here")
    assert error["message"] == "here has 5 bytes free."
    assert error["what_to_do"] == "Free some space there."


async def test_a_hive_that_never_answers_fails_the_job(queen: QueenProcess):
    queen.hosts(LOCAL % free_port())
    queen.playbook("hive", MAKE_TOKEN)
    queen.config.write_text(queen.config.read_text().replace("verify_timeout_s = 10", "verify_timeout_s = 1"))
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        job = await api.ended(job["job_id"])
        assert (job["status"], job["error"]["code"]) == ("failed", "hive_unreachable")


def long_playbook(queen: QueenProcess, marker: str, seconds: int, passed: Path) -> None:
    queen.playbook(
        "hive",
        PASSED.format(log=passed)
        + f"- name: Take a while\n  ansible.builtin.command:\n    argv: [sh, -c, 'sleep {seconds}; : {marker}']\n"
        + MAKE_TOKEN,
    )


async def wait_for(condition: Any, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for does not happen"
        await asyncio.sleep(0.05)


async def test_cancel_ends_what_runs_and_frees_the_node(queen: QueenProcess, tmp_path: Path):
    marker = f"cancel-{tmp_path.name}"
    queen.hosts(LOCAL % free_port())
    long_playbook(queen, marker, 300, tmp_path / "passed")
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        assert (await api.call("POST", "/api/v1/nodes/here/provision"))[1]["job_id"] == job["job_id"]
        await wait_for(lambda: processes_with(marker))
        assert (await api.node("here"))["status"] == "provisioning"
        status, cancelling = await api.call("POST", f"/api/v1/jobs/{job['job_id']}/cancel")
        assert (status, cancelling["status"]) == (200, "cancelling")
        ended = await api.ended(job["job_id"], timeout=15)
        assert (ended["status"], ended["error"]["code"]) == ("cancelled", "cancelled")
        assert processes_with(marker) == [], "nothing runs once the job has ended"
        node = await api.node("here")
        assert (node["status"], node["last_error"]["code"]) == ("failed", "cancelled")
        status, answer = await api.call("POST", f"/api/v1/jobs/{job['job_id']}/cancel")
        assert (status, answer["error"]["code"]) == (409, "job_ended")


async def test_a_killed_queen_resumes_its_job(queen: QueenProcess, hive: int, tmp_path: Path):
    marker, passed = f"killed-{tmp_path.name}", tmp_path / "passed"
    queen.hosts(LOCAL % hive)
    long_playbook(queen, marker, 300, passed)
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        await wait_for(lambda: processes_with(marker))
    queen.stop(signal.SIGKILL)
    long_playbook(queen, marker, 0, passed)
    queen.start()
    assert processes_with(f"sleep 300; : {marker}") == [], "the dead queen's run is fenced before a new one begins"
    async with queen.client() as api:
        ended = await api.ended(job["job_id"])
        assert ended["status"] == "succeeded"
        assert (await api.node("here"))["status"] == "active"
        events = [event async for event in api.events(job["job_id"])]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert len((await api.call("GET", "/api/v1/jobs"))[1]["jobs"]) == 1
    assert passed.read_text().split() == ["passed", "passed"]


async def test_a_run_whose_process_is_killed_is_done_again(queen: QueenProcess, hive: int, tmp_path: Path):
    marker, passed = f"lost-{tmp_path.name}", tmp_path / "passed"
    queen.hosts(LOCAL % hive)
    long_playbook(queen, marker, 300, passed)
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        await wait_for(lambda: processes_with(marker))
        long_playbook(queen, marker, 0, passed)
        (process,) = (pid for pid in processes_with("run_child.py") if works_in(pid, queen.project))
        os.kill(process, signal.SIGKILL)
        ended = await api.ended(job["job_id"])
        assert (ended["status"], ended["error"]) == ("succeeded", None)
        events = [event async for event in api.events(job["job_id"])]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert any("is started again" in (event["message"] or "") for event in events if event["kind"] == "phase")
    assert passed.read_text().split() == ["passed", "passed"] and processes_with(f"sleep 300; : {marker}") == []


def works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False


async def test_a_stopped_queen_leaves_nothing_running_and_resumes(queen: QueenProcess, hive: int, tmp_path: Path):
    marker = f"stopped-{tmp_path.name}"
    queen.hosts(LOCAL % hive)
    long_playbook(queen, marker, 300, tmp_path / "passed")
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        story = asyncio.create_task(_collect(api.events(job["job_id"])))
        await wait_for(lambda: processes_with(marker))
        assert queen.stop(signal.SIGTERM) < 10
        assert processes_with(marker) == []
        assert not any(event.get("kind") == "end" for event in await story)
    long_playbook(queen, marker, 0, tmp_path / "passed")
    queen.start()
    async with queen.client() as api:
        assert (await api.ended(job["job_id"]))["status"] == "succeeded"


async def _collect(events: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    seen = []
    try:
        async for event in events:
            seen.append(event)
    except Exception as error:  # the line is cut when the queen stops
        assert "payload" in str(error).lower() or "Connection" in str(error), error
    return seen


async def test_a_job_resumed_without_its_password_says_so(queen: QueenProcess, tmp_path: Path):
    marker, password = f"password-{tmp_path.name}", "sesame-open-please"
    queen.hosts(LOCAL % free_port())
    long_playbook(queen, marker, 300, tmp_path / "passed")
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision", {"sudo_password": password})
        await wait_for(lambda: processes_with(marker))
        holders = [path for path in queen.data.rglob("*") if path.is_file() and password.encode() in path.read_bytes()]
        assert [path.name for path in holders] == ["become-password"]
        assert holders[0].stat().st_mode & 0o777 == 0o600
        assert processes_with(password) == []
    queen.stop(signal.SIGKILL)
    queen.start()
    async with queen.client() as api:
        ended = await api.ended(job["job_id"])
        assert (ended["status"], ended["error"]["code"]) == ("failed", "sudo_password_lost")
    assert not any(password.encode() in path.read_bytes() for path in queen.data.rglob("*") if path.is_file())
    assert password not in queen.log()


async def test_what_another_version_began_is_closed_and_what_only_we_recorded_begins(
    queen: QueenProcess, hive: int, tmp_path: Path
):
    marker = f"upgrade-{tmp_path.name}"
    queen.hosts(LOCAL % hive + "        other:\n          ansible_connection: local\n")
    long_playbook(queen, marker, 300, tmp_path / "passed")
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        await wait_for(lambda: processes_with(marker))
    queen.stop(signal.SIGKILL)
    queen.playbook("hive", "- name: Fail\n  ansible.builtin.fail:\n    msg: '[tried] it ran'\n")
    with sqlite3.connect(queen.data / "dbos.sqlite") as engine:
        engine.execute("UPDATE workflow_status SET application_version = '0'")
    with sqlite3.connect(queen.data / "queen.sqlite") as store:
        store.execute(
            "INSERT INTO jobs (job_id, kind, node_name, status, percentage, created_at, correlation_id, force,"
            " had_password) SELECT 'job-lost', kind, 'other', 'queued', 0, created_at, 'c', 0, 0 FROM jobs"
        )
    queen.start()
    async with queen.client() as api:
        assert (await api.ended(job["job_id"]))["error"]["code"] == "interrupted_by_upgrade"
        assert (await api.node("here"))["status"] == "failed"
        assert (await api.ended("job-lost"))["error"]["code"] == "tried"
        assert processes_with(marker) == []
    queen.stop()
    queen.start()
    async with queen.client() as api:
        assert len((await api.call("GET", "/api/v1/jobs"))[1]["jobs"]) == 2


async def test_a_queen_killed_while_it_cancels_cancels(queen: QueenProcess, tmp_path: Path):
    marker = f"cancelkill-{tmp_path.name}"
    queen.hosts(LOCAL % free_port())
    long_playbook(queen, marker, 300, tmp_path / "passed")
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/provision")
        await wait_for(lambda: processes_with(marker))
        await api.call("POST", f"/api/v1/jobs/{job['job_id']}/cancel")
    queen.stop(signal.SIGKILL)
    queen.start()
    async with queen.client() as api:
        assert (await api.ended(job["job_id"]))["status"] == "cancelled"
        assert processes_with(marker) == []


async def test_a_job_waits_for_a_slot_and_can_be_cancelled_there(queen: QueenProcess, tmp_path: Path):
    marker = f"slot-{tmp_path.name}"
    queen.config.write_text(queen.config.read_text() + "max_concurrent_jobs = 1\n")
    queen.hosts(LOCAL % free_port() + "        other:\n          ansible_connection: local\n")
    long_playbook(queen, marker, 300, tmp_path / "passed")
    queen.start()
    async with queen.client() as api:
        _, first = await api.call("POST", "/api/v1/nodes/here/provision")
        await wait_for(lambda: processes_with(marker))
        _, second = await api.call("POST", "/api/v1/nodes/other/provision")
        await asyncio.sleep(0.3)
        assert (await api.job(second["job_id"]))["status"] == "queued"
        await api.call("POST", f"/api/v1/jobs/{second['job_id']}/cancel")
        assert (await api.ended(second["job_id"], timeout=5))["status"] == "cancelled"
        assert (await api.job(first["job_id"]))["status"] == "running"


async def test_a_host_that_comes_into_the_inventory_is_provisioned_where_the_site_says_so(
    queen: QueenProcess, hive: int
):
    queen.config.write_text(queen.config.read_text() + "provision_on_inventory_change = true\n")
    queen.playbook("hive", MAKE_TOKEN)
    queen.hosts("all:\n  children:\n    hives:\n      hosts:\n")
    queen.start()
    async with queen.client() as api:
        queen.hosts(LOCAL % hive)
        node = await api.until(lambda node: node["status"] == "active", "/api/v1/nodes/here", 60)
        job = await api.ended(node["job_id"])
        assert (job["kind"], job["status"]) == ("provision", "succeeded")


@pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing())
class TestOverSsh:
    @pytest.fixture
    def server(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Sshd]:
        server = sshd.Sshd(tmp_path_factory.mktemp("sshd"))
        server.start()
        yield server
        server.stop()

    def body(self, server: sshd.Sshd, name: str = "box") -> dict[str, object]:
        return {"node_name": name, "ssh_host": "127.0.0.1", "ssh_port": server.port, "ssh_user": server.user}

    def authorize(self, queen: QueenProcess, server: sshd.Sshd) -> None:
        server.authorized.write_text((queen.secrets / "ssh" / "id_ed25519.pub").read_text())

    async def test_a_refused_key_says_where_the_right_one_is(self, queen: QueenProcess, server: sshd.Sshd):
        queen.start()
        async with queen.client() as api:
            _, node = await api.call("POST", "/api/v1/nodes", self.body(server))
            job = await api.ended(node["job_id"])
            assert job["error"]["code"] == "ssh_key_refused"
            assert "/api/v1/ssh-key" in job["error"]["what_to_do"]

    async def test_the_whole_way_then_a_changed_host_key_then_removal(self, queen: QueenProcess, server: sshd.Sshd):
        queen.playbook("hive", MAKE_TOKEN)
        queen.playbook("remove", "- name: Take it off\n  ansible.builtin.command: 'true'\n")
        async with serving(fake_hive("box", TOKEN)) as url:
            (queen.inventory / "group_vars").mkdir()
            (queen.inventory / "group_vars" / "hives.yml").write_text(
                f"hive_port: {url.rpartition(':')[2]}\nansible_python_interpreter: {sys.executable}\n"
            )
            queen.start()
            self.authorize(queen, server)
            async with queen.client() as api:
                _, node = await api.call("POST", "/api/v1/nodes", self.body(server))
                job = await api.ended(node["job_id"])
                assert job["status"] == "succeeded", job["error"]
                node = await api.node("box")
                assert node["status"] == "active"
                assert node["host_key"]["type"] == "ssh-ed25519"
                assert node["host_key"]["fingerprint"] in server.fingerprint()

                old_key = (server.folder / "host_key").read_bytes(), (server.folder / "host_key.pub").read_bytes()
                server.new_host_key()
                _, job = await api.call("POST", "/api/v1/nodes/box/provision")
                job = await api.ended(job["job_id"])
                assert (job["status"], job["error"]["code"]) == ("failed", "host_key_changed")
                _, job = await api.call("DELETE", "/api/v1/nodes/box")
                assert (await api.ended(job["job_id"]))["error"]["code"] == "host_key_changed"
                assert (await api.node("box"))["status"] == "failed"

                server.stop()
                (server.folder / "host_key").write_bytes(old_key[0])
                (server.folder / "host_key.pub").write_bytes(old_key[1])
                server.start()
                _, job = await api.call("DELETE", "/api/v1/nodes/box")
                assert (await api.ended(job["job_id"]))["status"] == "succeeded"
                assert (await api.call("GET", "/api/v1/nodes/box"))[0] == 404
                assert "127.0.0.1" not in (queen.data / "known_hosts").read_text()
                assert not (queen.secrets / "hives" / "box").exists()

    async def test_two_nodes_at_once(self, queen: QueenProcess, server: sshd.Sshd):
        queen.playbook("hive", "- name: Fail here\n  ansible.builtin.fail:\n    msg: '[tried] it ran'\n")
        queen.start()
        self.authorize(queen, server)
        async with queen.client() as api:
            nodes = [await api.call("POST", "/api/v1/nodes", self.body(server, name)) for name in ("one", "two")]
            jobs = [await api.ended(node["job_id"]) for _, node in nodes]
            assert [job["error"]["code"] for job in jobs] == ["tried", "tried"]
            assert [job["error"]["host"] for job in jobs] == ["one", "two"]
            assert jobs[1]["started_at"] < jobs[0]["ended_at"]
