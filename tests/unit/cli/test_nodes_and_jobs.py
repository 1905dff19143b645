from __future__ import annotations

import json

import pytest

from llama_orch.contract.common import Problem, WorkerCounts
from llama_orch.contract.devices import Condition, ConditionType, Remedy
from llama_orch.contract.queen import JobStatus, NodeCreate, NodeHive, ProvisionRequest, RemedyRequest
from tests.unit.cli.conftest import Command
from tests.unit.cli.services import DEVICES, NOW, Fleet

DAMAGED = Problem(
    code="record_damaged", message="what was known of node n7 was forgotten", what_to_do="provision it again"
)


async def test_nodes_as_a_table(fleet: Fleet, command: Command):
    workers = WorkerCounts(total=2, idle=1, busy=1)
    told = NodeHive(hive_id="n1", version="0.1.0", url=fleet.urls["hive"], workers=workers, devices=DEVICES)
    fleet.add_node("n1", status="active", hive=told, last_seen=NOW)
    fleet.add_node("n2", status="failed", last_error=Problem(code="x", message="no route [red] to host\x1b[2J"))
    result = await command("nodes", "list")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert "active" in rows["n1"] and "root@192.0.2.7:22" in rows["n1"] and "2 (1 busy)" in rows["n1"]
    assert rows["n2:"] == "n2: no route [red] to host\N{REPLACEMENT CHARACTER}[2J" and "\x1b" not in result.stdout


async def test_nodes_as_json(fleet: Fleet, command: Command):
    assert json.loads((await command("nodes", "list", "--json")).stdout) == {"nodes": [], "problems": []}
    fleet.add_node("n1")
    fleet.problems = [DAMAGED]
    told = json.loads((await command("nodes", "list", "--json")).stdout)
    assert told["nodes"][0]["node_name"] == "n1" and told["problems"] == [DAMAGED.model_dump()]


async def test_what_is_wrong_with_the_queens_files_is_told_beside_the_nodes(fleet: Fleet, command: Command):
    fleet.problems = [DAMAGED]
    empty = await command("nodes", "list")
    fleet.add_node("n1")
    result = await command("nodes", "list")
    for told in (empty.stderr, result.stderr):
        assert "the queen: record_damaged: what was known of node n7 was forgotten\nprovision it again" in told
    assert "n1" in result.stdout and "record_damaged" not in result.stdout and result.exit_code == 0


async def test_lists_are_asked_for_page_by_page(fleet: Fleet, command: Command):
    fleet.page = 2
    for number in range(5):
        fleet.add_node(f"n{number}")
        fleet.add_job(f"n{number}")
    listed = json.loads((await command("nodes", "list", "--json")).stdout)
    assert [node["node_name"] for node in listed["nodes"]] == [f"n{number}" for number in range(5)]
    assert [cursor for _, cursor in fleet.pages_asked] == [None, "n1", "n3"]
    assert all(limit is not None for limit, _ in fleet.pages_asked)
    jobs = json.loads((await command("jobs", "list", "--json")).stdout)
    assert [job["job_id"] for job in jobs] == [f"job-{number}" for number in range(5, 0, -1)]
    newest = json.loads((await command("jobs", "list", "--json", "--limit", "3")).stdout)
    assert [job["job_id"] for job in newest] == ["job-5", "job-4", "job-3"]
    assert (await command("jobs", "watch", "n0")).exit_code == 0, "its job is on the last page"


@pytest.mark.parametrize("what", ["nodes", "jobs"])
async def test_a_queen_that_goes_round_in_circles_is_not_followed(fleet: Fleet, command: Command, what: str):
    fleet.cursor_stays = True
    fleet.add_node("n1")
    fleet.add_job("n1")
    result = await command(what, "list")
    assert result.exit_code == 1 and "answers the same page again and again" in result.stderr


async def test_no_nodes_says_how_to_add_one(command: Command):
    result = await command("nodes", "list")
    assert (result.exit_code, result.stdout) == (0, "") and "llama-orch nodes add" in result.stderr


async def test_add_follows_the_job_to_its_end(fleet: Fleet, command: Command):
    result = await command("nodes", "add", "n1", "192.0.2.9", "--user", "debian", "--label", "rack=a1")
    assert result.exit_code == 0, result.stderr
    body = fleet.bodies[0]
    assert isinstance(body, NodeCreate) and (body.ssh_user, body.labels) == ("debian", {"rack": "a1"})
    story = [line.strip() for line in result.stderr.splitlines()]
    assert "Make it a hive" in story and "changed  Install packages  1.5 s" in story
    assert "Node n1 is" in result.stdout


async def test_a_failed_job_says_why_and_what_to_do(fleet: Fleet, command: Command):
    fleet.job_ends_as = JobStatus.FAILED
    result = await command("nodes", "add", "n1", "192.0.2.9")
    assert result.exit_code == 1
    assert "in task 'Install packages' on n1: no space left on device" in result.stderr
    assert "Free 2 GiB on /opt." in result.stderr and "llama-orch nodes provision n1" in result.stderr


async def test_add_with_json_prints_the_node_alone(command: Command):
    result = await command("nodes", "add", "n1", "192.0.2.9", "--json")
    assert json.loads(result.stdout)["node_name"] == "n1" and result.stderr == ""


async def test_add_without_waiting_names_the_job(command: Command):
    result = await command("nodes", "add", "n1", "192.0.2.9", "--no-wait")
    assert result.exit_code == 0 and "llama-orch jobs watch job-1" in result.stderr


async def test_the_sudo_password_comes_from_stdin(fleet: Fleet, command: Command):
    fleet.add_node("n1")
    result = await command("nodes", "provision", "n1", "--ask-sudo-password", stdin="s3cret\n")
    body = fleet.bodies[0]
    assert result.exit_code == 0 and isinstance(body, ProvisionRequest) and body.sudo_password is not None
    assert body.sudo_password.get_secret_value() == "s3cret"
    assert "s3cret" not in result.output


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("nodes", "add", "Bad Name", "h"), "node_name"),
        (("nodes", "add", "n1", "-oProxyCommand=x"), "No such option"),
        (("nodes", "add", "n1", "{{ h }}"), "ssh_host"),
        (("nodes", "add", "n1", "h", "--port", "0"), "ssh_port"),
        (("nodes", "add", "n1", "h", "--label", "x"), "--label"),
        (("nodes", "add", "n1"), "HOST"),
        (("nodes", "add", "n1", "h", "--ask-sudo-password"), "stdin"),
        (("nodes", "paint"), "paint"),
    ],
)
async def test_a_wrong_argument_is_named_and_nothing_is_sent(
    fleet: Fleet, command: Command, arguments: tuple[str, ...], names: str
):
    result = await command(*arguments, stdin="")
    assert result.exit_code == 2 and names in result.stderr
    assert not fleet.bodies


async def test_an_error_of_the_queen_is_status_1(fleet: Fleet, command: Command):
    fleet.add_node("n1")
    result = await command("nodes", "add", "n1", "192.0.2.9")
    assert result.exit_code == 1 and "error: node n1 is there already" in result.stderr


async def test_remove_and_force(fleet: Fleet, command: Command):
    fleet.add_node("gone")
    assert (await command("nodes", "remove", "gone")).exit_code == 1
    result = await command("nodes", "remove", "gone", "--force")
    assert (result.exit_code, result.stdout) == (0, "Node gone is removed\n")


async def test_the_key_is_printed_as_authorized_keys_wants_it(command: Command):
    assert (await command("ssh-key")).stdout == "ssh-ed25519 AAAA\n"


async def test_jobs_list_watch_and_cancel(fleet: Fleet, command: Command):
    fleet.add_job("n1")
    fleet.add_job("n1")
    assert [line.split()[0] for line in (await command("jobs", "list")).stdout.splitlines()][2:] == ["job-2", "job-1"]
    watched = await command("jobs", "watch", "n1")
    assert (watched.exit_code, watched.stdout) == (0, "provision of n1 succeeded\n")
    cancelled = await command("jobs", "cancel", "n1")
    assert "provision of n1 is cancelled" in cancelled.stdout and fleet.jobs["job-1"].status == JobStatus.CANCELLED
    nothing = await command("jobs", "cancel", "n1")
    assert nothing.exit_code == 1 and "no open job n1" in nothing.stderr


async def test_watching_carries_on_where_the_stream_broke_off(fleet: Fleet, command: Command):
    fleet.add_job("n1")
    fleet.cut_events_after = 2
    result = await command("jobs", "watch", "job-1", "--json")
    assert result.exit_code == 0
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [1, 2, 3, 4]


async def test_the_ssh_key_is_one_line_to_paste(command: Command):
    result = await command("ssh-key")
    assert result.exit_code == 0 and result.stdout.startswith("ssh-ed25519 ") and result.stdout.count("\n") == 1


async def test_conditions_name_their_remedy_and_it_is_started_by_name(fleet: Fleet, command: Command):
    ecc = Condition(
        type=ConditionType.ECC_UNCORRECTED, uuid="GPU-7", index=0, message="GPU 0: errors", what_to_do="reset it",
        cordons=True, remedy=Remedy.RESET_GPU,
    )  # fmt: skip
    hot = ecc.model_copy(update={"message": "GPU 0: hot", "remedy": Remedy.COLLECT_GPU_REPORT})
    told = NodeHive(
        hive_id="n1", version="0.1.0", url="http://x", workers=WorkerCounts(total=0, idle=0, busy=0),
        devices=DEVICES.model_copy(update={"conditions": [ecc, hot]}),
    )  # fmt: skip
    fleet.add_node("n1", status="active", hive=told, last_seen=NOW)
    listed = (await command("nodes", "list")).stdout
    assert "n1: GPU 0: errors; reset it" in listed
    assert "llama-orch nodes remedy n1 reset_gpu --gpu GPU-7" in listed
    assert "llama-orch nodes remedy n1 collect_gpu_report\n" in listed

    result = await command("nodes", "remedy", "n1", "reset_gpu", "--gpu", "GPU-7")
    assert (result.exit_code, result.stdout) == (0, "reset_gpu of n1 is done\n"), result.stderr
    assert "changed  Install packages  1.5 s" in result.stderr
    assert fleet.bodies == [RemedyRequest(remedy=Remedy.RESET_GPU, gpu="GPU-7")]
    assert "jobs watch job-2" in (await command("nodes", "remedy", "n1", "reboot", "--no-wait")).stdout
    wrong = await command("nodes", "remedy", "n1", "rm")
    assert wrong.exit_code == 2 and "reload_driver" in wrong.stderr
    wrong = await command("nodes", "remedy", "n1", "reboot", "--gpu", "GPU-7")
    assert wrong.exit_code == 2 and "gpu: goes with the remedy reset_gpu only" in wrong.stderr
