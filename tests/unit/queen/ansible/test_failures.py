"""Messages as ssh, sudo and Ansible really wrote them."""

from __future__ import annotations

import pytest

from llama_orch.queen.ansible import run_child
from llama_orch.queen.ansible.failures import (
    CUT_SHORT,
    NO_RESULT,
    PASSWORD_LOST,
    RUN_LOST,
    TaskFailure,
    classify,
    may_be_stopped,
    of_run,
)

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key for 10.0.0.1 has changed and you have requested strict checking.
Host key verification failed.
"""
SSH = "Task failed: Failed to connect to the host via ssh: "


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (CHANGED, "host_key_changed"),
        ("llama-orch@10.0.0.1: Permission denied (publickey).", "ssh_key_refused"),
        ("root@127.0.0.1: Permission denied (publickey,password,keyboard-interactive).", "ssh_key_refused"),
        ("Received disconnect from 10.0.0.1 port 22:2: Too many authentication failures", "ssh_key_refused"),
        ("ssh: connect to host 127.0.0.1 port 9: Connection refused", "unreachable_host"),
        ("ssh: connect to host 10.255.255.1 port 22: Connection timed out", "unreachable_host"),
        ("ssh: Could not resolve hostname nowhere.invalid: Name or service not known", "unreachable_host"),
        ("kex_exchange_identification: Connection closed by remote host", "unreachable_host"),
        (SSH + "ssh: connect to host h port 22: No route to host", "unreachable_host"),
        ("Incorrect sudo password", "sudo_password_wrong"),
        ("Incorrect sudo password: Sorry, try again.\nsudo: no password was provided", "sudo_password_wrong"),
        ("Task failed: Missing sudo password", "sudo_password_missing"),
        ("sudo: a password is required", "sudo_password_missing"),
        ("alice is not in the sudoers file.  This incident has been reported.", "sudo_not_allowed"),
        ("sudo is not installed", "sudo_not_installed"),
        ("/bin/sh: 1: sudo: not found", "sudo_not_installed"),
        ("[Errno 28] No space left on device: '/root/.ansible/tmp'", "disk_full"),
        ("tar: wheel.whl: Cannot write: No space left on device", "disk_full"),
        ("[ERROR]: Completely failed to parse inventory source /x/hosts.yml", "inventory_broken"),
        ("[WARNING]: Could not match supplied host pattern, ignoring: x", "not_in_inventory"),
        ("[ERROR]: the playbook: playbooks/hive.yml could not be found", "playbook_missing"),
        ("something nobody has seen before", "task_failed"),
        ("", "task_failed"),
    ],
)
def test_the_reason_is_known_and_says_what_to_do(text: str, code: str):
    problem = classify(text)
    assert problem.code == code
    assert problem.message and problem.what_to_do and "@@@" not in problem.message


def test_a_roles_own_code_wins_and_its_advice_is_taken_as_it_stands():
    text = (
        "[unsupported_distribution] box runs Alpine Linux v3.20 (ID=alpine, VERSION_ID=3.20). Supported are debian 12"
        " and 13;\nNo space left on device\nDo: Install one of these on the host. Or another."
    )
    problem = classify(text, task="Refuse what is not supported", host="box")
    assert (problem.code, problem.task, problem.host) == (
        "unsupported_distribution",
        "Refuse what is not supported",
        "box",
    )
    assert problem.message.startswith("box runs Alpine") and problem.message.endswith("13; No space left on device")
    assert problem.what_to_do == "Install one of these on the host. Or another."


def test_only_the_last_do_is_the_advice_and_without_one_the_message_has_it():
    said = classify("[disk_full] apt said:\nDo: you want to continue? [Y/n]\nDo: Free some space.")
    assert (said.message, said.what_to_do) == ("apt said: Do: you want to continue? [Y/n]", "Free some space.")
    assert classify("[worker_refused] hive_workers of box").what_to_do.startswith("Do as the message says")


def test_unreachable_without_a_known_word_is_still_unreachable():
    assert classify("the line went dead", unreachable=True).code == "unreachable_host"


def test_the_task_that_ended_the_run_counts_not_one_that_was_rescued():
    rescued = TaskFailure("box", "Try", "first try")
    last = TaskFailure("box", "Write", "No space left on device")
    problem = of_run([rescued, last], "", "failed")
    assert (problem.code, problem.task) == ("disk_full", "Write")


def test_no_failed_task_falls_back_to_what_ansible_wrote():
    assert of_run([], "[ERROR]: Completely failed to parse inventory source", "failed").code == "inventory_broken"
    assert "'error'" in of_run([], "", "error").message
    assert of_run([TaskFailure("box", "Wait", "")], "", "timeout").code == "timed_out"


def test_a_run_without_a_result_is_no_failed_task():
    lost = of_run([TaskFailure("box", "Wait", "no space")], "a trace\nMemoryError: no room", NO_RESULT)
    assert lost.code == "run_lost" and lost.message.endswith("said at last: a trace MemoryError: no room")
    assert of_run([], " \n", NO_RESULT) == RUN_LOST
    assert len(of_run([], "x" * 10_000, NO_RESULT).message) <= 1500
    assert RUN_LOST.code in CUT_SHORT


def test_a_remedy_that_was_cut_short_says_how_the_hive_comes_back():
    problem = may_be_stopped(PASSWORD_LOST, "box")
    assert problem.message.endswith("; the hive and workers of box may be stopped")
    assert problem.what_to_do.startswith("Start the job again with sudo_password. ")
    assert "playbooks/resume.yml --limit box" in problem.what_to_do


def test_a_message_is_bounded():
    assert len(classify("x" * 100_000).message) < 2000


def test_a_loop_tells_what_its_first_failed_item_told():
    item = {"failed": True, "msg": "[disk_full] here has 5 bytes free at /opt. Free some space there."}
    result = {"failed": True, "msg": "One or more items failed", "results": [{"msg": "All is well"}, item, item]}
    assert run_child._message({"res": result}) == item["msg"]
    assert run_child._message({"res": {"failed": True, "msg": "no", "stderr": "why"}}) == "no\nwhy"


def test_what_to_do_is_kept_of_a_long_message():
    told = run_child._message({"res": {"failed": True, "msg": f"[disk_full] {'x' * 9000}\nDo: Free some space."}})
    assert len(told) <= run_child.MAX_TEXT
    assert classify(told).what_to_do == "Free some space."
