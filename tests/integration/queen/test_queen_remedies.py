"""A real queen and the remedies of a node's conditions: asked for, and allowed beforehand."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llama_orch.contract.devices import Condition, ConditionType, Remedy
from tests.integration.queen.test_queen_jobs import LOCAL, TOKEN
from tests.support.fake_hive import fake_hive
from tests.support.queen_process import REPOSITORY, QueenProcess
from tests.support.serving import serving

UUID = "GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c"
ECC = Condition(
    type=ConditionType.ECC_UNCORRECTED, uuid=UUID, index=0, message="GPU 0: 1 uncorrectable memory errors",
    what_to_do="run the remedy reset_gpu", cordons=True, remedy=Remedy.RESET_GPU,
)  # fmt: skip
ALLOWED = 'remedies_allowed = ["reset_gpu"]\nremedy_after_s = 0\n'
# What the playbook is given, noted down; it fails where the file says so.
RESET = """\
- name: Reset the GPU
  ansible.builtin.shell: echo "{{{{ gpu_remedy_gpu | default('all') }}}}" >> {log}
- name: Stop where it did not help
  ansible.builtin.fail:
    msg: "[gpu_not_reset] it is in use.\\nDo: Run the remedy reboot."
  when: "'{fails}' is exists"
"""


def resets(log: Path) -> list[str]:
    """What was reset so far."""
    return log.read_text().split() if log.exists() else []


def give_token(queen: QueenProcess, name: str) -> None:
    """Let the queen know the token of that hive."""
    token = queen.secrets / "hives" / name
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    token.touch(0o600)
    token.write_text(TOKEN)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "resets"


@pytest.fixture
def queen(tmp_path: Path, log: Path) -> Iterator[QueenProcess]:
    queen = QueenProcess(tmp_path)
    queen.playbook("reset_gpu", RESET.format(log=log, fails=tmp_path / "fails"))
    give_token(queen, "here")
    yield queen
    queen.end()


@pytest.fixture
def conditions() -> list[Condition]:
    return [ECC]


@pytest.fixture
async def hive(conditions: list[Condition]) -> AsyncIterator[int]:
    async with serving(fake_hive("here", TOKEN, conditions)) as url:
        yield int(url.rpartition(":")[2])


async def test_a_remedy_that_is_asked_for_is_a_job_like_others(
    queen: QueenProcess, hive: int, log: Path, tmp_path: Path
):
    queen.hosts(LOCAL % hive)
    queen.start()
    async with queen.client() as api:
        node = await api.until(lambda node: node["status"] == "active", "/api/v1/nodes/here")
        (condition,) = node["hive"]["devices"]["conditions"]
        assert (condition["type"], condition["remedy"]) == ("ecc_uncorrected", "reset_gpu")
        assert resets(log) == [], "nothing is done that the site did not allow"
        body = {"remedy": "reset_gpu", "gpu": UUID}
        status, job = await api.call("POST", "/api/v1/nodes/here/remedy", body)
        assert (status, job["kind"], job["remedy"], job["gpu"]) == (200, "remedy", "reset_gpu", UUID)
        status, busy = await api.call("POST", "/api/v1/nodes/here/remedy", body)
        assert (status, busy["error"]["code"], busy["error"]["details"]["job_id"]) == (409, "job_open", job["job_id"])
        assert (await api.node("here"))["status"] == "active", "its workers go on serving meanwhile"
        events = [event async for event in api.events(job["job_id"])]
        assert "the remedy reset_gpu begins" in [event["message"] for event in events]
        assert (await api.job(job["job_id"]))["status"] == "succeeded"
        assert resets(log) == [UUID]

        (tmp_path / "fails").touch()
        _, job = await api.call("POST", "/api/v1/nodes/here/remedy", {"remedy": "reset_gpu"})
        job = await api.ended(job["job_id"])
        assert (job["status"], job["error"]["code"]) == ("failed", "gpu_not_reset")
        assert job["error"]["what_to_do"] == "Run the remedy reboot."
        node = await api.node("here")
        assert (node["status"], node["last_error"]) == ("active", None), "what failed is the job, not the node"
        assert resets(log) == [UUID, "all"]

        _, text = await api.call("GET", "/metrics")
        assert 'llama_orch_queen_runs_total{playbook="reset_gpu",result="succeeded"} 1.0' in text
        assert 'llama_orch_queen_gpu_conditions{type="ecc_uncorrected"} 1.0' in text
        for wrong in ({"remedy": "site"}, {"remedy": "reset_gpu", "gpu": "GPU-{{ x }}"}, {"gpu": UUID}):
            assert (await api.call("POST", "/api/v1/nodes/here/remedy", wrong))[0] == 400
        assert (await api.call("POST", "/api/v1/nodes/none/remedy", body))[0] == 404


async def test_a_remedy_that_the_site_allows_begins_by_itself_and_once(
    queen: QueenProcess, hive: int, conditions: list[Condition], log: Path
):
    queen.config.write_text(queen.config.read_text() + ALLOWED)
    queen.hosts(LOCAL % hive)
    hot = ECC.model_copy(update={"type": ConditionType.OVER_TEMPERATURE, "remedy": Remedy.COLLECT_GPU_REPORT})
    conditions.append(hot)
    queen.start()
    async with queen.client() as api:
        jobs = (await api.until(lambda found: found["jobs"], "/api/v1/jobs"))["jobs"]
        job = await api.ended(jobs[0]["job_id"])
        assert (job["remedy"], job["gpu"], job["condition"]) == ("reset_gpu", UUID, "ecc_uncorrected")
        events = json.dumps([event async for event in api.events(job["job_id"])])
        assert "as the site allows it for ecc_uncorrected" in events
        seen = (await api.node("here"))["last_seen"]
        await api.until(lambda node: node["last_seen"] > seen, "/api/v1/nodes/here")
    # A queen that is started anew knows what was tried.
    queen.stop()
    queen.start()
    async with queen.client() as api:
        seen = (await api.node("here"))["last_seen"]
        await api.until(lambda node: node["last_seen"] and node["last_seen"] > (seen or ""), "/api/v1/nodes/here")
        seen = (await api.node("here"))["last_seen"]
        await api.until(lambda node: node["last_seen"] > seen, "/api/v1/nodes/here")
        assert [one["job_id"] for one in (await api.call("GET", "/api/v1/jobs"))[1]["jobs"]] == [job["job_id"]]
    assert resets(log) == [UUID]


async def test_what_begins_by_itself_runs_on_one_node_at_a_time(queen: QueenProcess, hive: int, log: Path):
    queen.config.write_text(queen.config.read_text() + ALLOWED)
    give_token(queen, "there")
    async with serving(fake_hive("there", TOKEN, [ECC])) as url:
        other = LOCAL.partition("hosts:\n")[2].replace("here:", "there:") % int(url.rpartition(":")[2])
        queen.hosts(LOCAL % hive + other)
        queen.start()
        async with queen.client() as api:
            found = await api.until(
                lambda found: len(found["jobs"]) == 2 and all(job["ended_at"] for job in found["jobs"]), "/api/v1/jobs"
            )
    second, first = found["jobs"]
    assert {first["node_name"], second["node_name"]} == {"here", "there"}
    assert second["created_at"] >= first["ended_at"]
    assert resets(log) == [UUID, UUID]


async def test_what_a_hive_calls_a_gpu_is_not_evaluated(
    queen: QueenProcess, hive: int, conditions: list[Condition], log: Path, tmp_path: Path
):
    hostile = "GPU-{{ lookup('ansible.builtin.pipe', 'touch %s') }}" % (tmp_path / "evaluated")
    conditions[:] = [ECC.model_copy(update={"uuid": hostile})]
    queen.config.write_text(queen.config.read_text() + ALLOWED)
    queen.hosts(LOCAL % hive)
    queen.start()
    async with queen.client() as api:
        jobs = (await api.until(lambda found: found["jobs"], "/api/v1/jobs"))["jobs"]
        assert (await api.ended(jobs[0]["job_id"]))["status"] == "succeeded"
    assert resets(log) == ["all"]
    assert not (tmp_path / "evaluated").exists()


# Writes down that it began and what it was given, and goes on until it is ended.
LONG = """\
- name: Work for long
  ansible.builtin.shell: echo "${{EPOCHSECONDS:-0}}:{{{{ gpu_remedy_began | default('') }}}}" >> {log}; sleep 300
  args: {{executable: /bin/bash}}
"""
RESUME = """\
- name: Start again what was stopped
  ansible.builtin.shell: echo resumed >> {log}
- name: Stop where the hive does not answer
  ansible.builtin.fail: {{msg: "[hive_not_answering] the hive is mute.\\nDo: Look at its log."}}
  when: "'{fails}' is exists"
"""


async def begun(log: Path, count: int = 1) -> list[str]:
    """What the playbook wrote, once it began so many times."""
    deadline = time.monotonic() + 60
    while len(resets(log)) < count:
        assert time.monotonic() < deadline, resets(log)
        await asyncio.sleep(0.05)
    return resets(log)


async def test_what_a_remedy_stopped_is_started_when_it_is_cut_short(
    queen: QueenProcess, hive: int, log: Path, tmp_path: Path
):
    queen.playbook("reset_gpu", LONG.format(log=log))
    queen.playbook("resume", RESUME.format(log=log, fails=tmp_path / "fails"))
    queen.hosts(LOCAL % hive)
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/remedy", {"remedy": "reset_gpu"})
        await begun(log)
        await api.call("POST", f"/api/v1/jobs/{job['job_id']}/cancel")
        job = await api.ended(job["job_id"])
        assert (job["status"], job["error"]["message"]) == ("cancelled", "the job was cancelled before its end")
        assert job["error"]["what_to_do"].endswith("a remedy begins anew.")
        assert resets(log)[1:] == ["resumed"]
        _, text = await api.call("GET", "/metrics")
        assert 'llama_orch_queen_runs_total{playbook="resume",result="succeeded"} 1.0' in text

    # Nor does it help to be out of time, and where the hive stays down the job says so.
    queen.stop()
    (tmp_path / "fails").touch()
    queen.config.write_text(queen.config.read_text() + "run_timeout_s = 5\n")
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/remedy", {"remedy": "reset_gpu"})
        error = (await api.ended(job["job_id"]))["error"]
    assert error["code"] == "timed_out"
    assert (
        "hive and workers of here may be stopped, and could not be started again: the hive is mute" in error["message"]
    )
    assert "`ansible-playbook playbooks/resume.yml --limit here`" in error["what_to_do"]
    assert resets(log)[3:] == ["resumed"]


async def test_a_reboot_that_goes_on_with_a_new_queen_knows_when_it_began(queen: QueenProcess, hive: int, log: Path):
    queen.playbook("reboot", LONG.format(log=log))
    queen.playbook("resume", RESUME.format(log=log, fails=log.parent / "fails"))
    queen.hosts(LOCAL % hive)
    queen.start()
    async with queen.client() as api:
        _, job = await api.call("POST", "/api/v1/nodes/here/remedy", {"remedy": "reboot"})
        await begun(log)
    queen.stop()
    queen.start()
    (first, began), (second, again) = ((int(part) for part in line.split(":")) for line in await begun(log, 2))
    assert began == again
    assert first - 60 < began <= first < second
    async with queen.client() as api:
        await api.call("POST", f"/api/v1/jobs/{job['job_id']}/cancel")
        assert (await api.ended(job["job_id"]))["status"] == "cancelled"
    assert resets(log)[2:] == ["resumed"]


OWN = """\
---
- name: Reboot hosts
  hosts: all
  gather_facts: false
  tasks:
    - name: Reboot hosts
      ansible.builtin.import_role:
        name: gpu_remedy
        tasks_from: reboot
"""


def test_the_machine_that_runs_the_playbook_is_not_rebooted_by_it(tmp_path: Path):
    (tmp_path / "own.yml").write_text(OWN)
    # Where the role did not refuse, Ansible's module would: it never reboots over a local connection.
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"), "-i", "here,", "-c", "local",
            "-e", f"ansible_python_interpreter={sys.executable}", tmp_path / "own.yml",
        ],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(REPOSITORY / "roles"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert "[own_machine] here runs on the machine that this playbook runs on" in " ".join(done.stdout.split())
    assert "Suspend the hive" not in done.stdout
