"""Turns what ssh, sudo and Ansible said into a Problem: a code, what happened, and what a person can do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llama_orch.contract.common import Problem

_MAX_MESSAGE = 1500
# Ends of a run that Ansible does not tell: the queen ended it, or its process was gone before it could.
TIMEOUT = "timeout"
NO_RESULT = "no result"
_AS_IT_SAYS = "Do as the message says, and start the job again."
AGAIN = "Then start the job again."


@dataclass(frozen=True)
class TaskFailure:
    """One task that failed on one host, as Ansible reported it."""

    host: str | None
    task: str | None
    message: str
    unreachable: bool = False


# What the roles say: `[code] message`, then `Do: ...` on a line of its own.
_ROLE_MESSAGE = re.compile(r"\s*\[([a-z][a-z0-9_]{2,40})\]\s(.*?)(?:\nDo: ((?:(?!\nDo: ).)*))?\Z", re.DOTALL)

# (what the text holds, code, what happened, what to do), the first that fits counts.
_KNOWN: tuple[tuple[str, str, str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed|host key .{0,200} has changed",
        "host_key_changed",
        "the host shows another ssh host key than the one that first contact recorded",
        "Find out why. If the host was installed anew, DELETE the node with ?force=true, which forgets the recorded "
        "key, and register it again.",
    ),
    (
        r"Permission denied \(|Too many authentication failures|Permission denied, please try again",
        "ssh_key_refused",
        "the host refused the queen's ssh key for this user",
        "Add the line that GET /api/v1/ssh-key answers to ~/.ssh/authorized_keys of that user on the host. " + AGAIN,
    ),
    (
        r"Incorrect sudo password|Sorry, try again|incorrect password attempt|Incorrect su password",
        "sudo_password_wrong",
        "sudo on the host did not accept the password",
        "Start the job again with the right sudo_password.",
    ),
    (
        r"Missing sudo password|sudo: a password is required|Missing become password|a terminal is required to read",
        "sudo_password_missing",
        "sudo on the host asks for a password and none was given",
        "Start the job again with sudo_password, or allow the login user to use sudo without one.",
    ),
    (
        r"is not in the sudoers file|is not allowed to (execute|run) sudo|may not run sudo",
        "sudo_not_allowed",
        "the login user may not use sudo",
        "Give the login user sudo rights on the host, or register the node with another ssh_user. " + AGAIN,
    ),
    (
        r"sudo: (command )?not found|No such file or directory.{0,200}'sudo'|sudo is not installed",
        "sudo_not_installed",
        "the host has no sudo and the login user is not root",
        "Install sudo on the host, or register the node with ssh_user root. " + AGAIN,
    ),
    (
        r"No space left on device|Errno 28|not enough free space|[Dd]isk quota exceeded",
        "disk_full",
        "a disk of the host is full",
        "Free some space on the host. " + AGAIN,
    ),
    (
        r"Connection timed out|Operation timed out|No route to host|Connection refused|Network is unreachable"
        r"|Could not resolve hostname|Name or service not known|Temporary failure in name resolution"
        r"|Connection closed by|Connection reset by|kex_exchange_identification|Connection to .{0,200} closed"
        r"|banner exchange|timed out during banner|Broken pipe|port 65535",
        "unreachable_host",
        "the host cannot be reached by ssh",
        "Check that the host is on, that ssh_host and ssh_port are right and that no firewall is in between. " + AGAIN,
    ),
    (
        r"Completely failed to parse inventory|[Ff]ailed to parse (the )?inventory",
        "inventory_broken",
        "Ansible cannot read the inventory",
        "Mend the file that the message names. " + AGAIN,
    ),
    (
        r"Could not match supplied host pattern|no hosts matched",
        "not_in_inventory",
        "the inventory does not hold this host in the group 'hives'",
        "Put it there, or register it. " + AGAIN,
    ),
    (
        r"could not be found|the playbook: .{0,1000} does not appear to be a file",
        "playbook_missing",
        "the project folder does not hold this playbook",
        "Check project_dir in the queen's settings.",
    ),
)


def classify(text: str, *, task: str | None = None, host: str | None = None, unreachable: bool = False) -> Problem:
    """The problem behind a message of ssh, sudo or Ansible."""
    role = _ROLE_MESSAGE.match(text)
    if role is not None:
        message, advice = " ".join(role[2].split())[:_MAX_MESSAGE], " ".join((role[3] or _AS_IT_SAYS).split())
        return Problem(code=role[1], message=message, what_to_do=advice, task=task, host=host)
    for pattern, code, what, advice in _KNOWN:
        if re.search(pattern, text):
            message = f"{what}: {_one_line(text)}" if text.strip() else what
            return Problem(code=code, message=message, what_to_do=advice, task=task, host=host)
    if unreachable:
        advice = "Check that the host is on and that ssh works. " + AGAIN
        return Problem(code="unreachable_host", message=_one_line(text), what_to_do=advice, task=task, host=host)
    where = f"the task '{task}' failed on {host}" if task else "the run failed"
    advice = "Read the job's events, mend what the message says. " + AGAIN
    message = f"{where}: {_one_line(text) or 'Ansible gave no reason'}"
    return Problem(code="task_failed", message=message, what_to_do=advice, task=task, host=host)


def of_run(failures: list[TaskFailure], output: str, status: str) -> Problem:
    """The problem of a run that did not succeed: the task that ended it, or what Ansible wrote before it gave up."""
    if status == TIMEOUT:
        return TIMED_OUT
    if status == NO_RESULT:
        said = f", and said at last: {_one_line(output)}" if output.strip() else ""
        return RUN_LOST.model_copy(update={"message": f"{RUN_LOST.message}{said}"[:_MAX_MESSAGE]})
    if failures:
        last = failures[-1]
        return classify(last.message, task=last.task, host=last.host, unreachable=last.unreachable)
    return classify(output[-4000:].strip() or f"ansible-playbook ended as '{status}'")


def may_be_stopped(problem: Problem, node_name: str, why: Problem | None = None) -> Problem:
    """The problem of a remedy whose run was cut short: its agent and workers may be down, and `why` they still are."""
    tried = f", and could not be started again: {why.message}" if why else ""
    message = f"{problem.message}; the hive and workers of {node_name} may be stopped{tried}"[:_MAX_MESSAGE]
    advice = (
        f"{problem.what_to_do} A remedy begins by starting what was stopped; "
        f"`ansible-playbook playbooks/resume.yml --limit {node_name}` does only that, and so does a reboot."
    )
    return problem.model_copy(update={"message": message, "what_to_do": advice})


def own_machine(name: str) -> Problem:
    """A node that is the queen's own machine, where the site has not allowed to change that."""
    return Problem(
        code="own_machine_not_allowed",
        message=f"node {name} is the machine that the queen runs on (ansible_connection: local): it would be changed, "
        "or rebooted, with all that the queen's user may do by sudo",
        what_to_do="Set change_own_machine to true in the queen's settings (LLAMA_ORCH_QUEEN_CHANGE_OWN_MACHINE=true "
        "make up) where that is meant. " + AGAIN,
        host=name,
    )


def named_like_a_group(name: str) -> Problem:
    """A host whose name is a group's: a run limited to it would reach every host of the group."""
    return Problem(
        code="name_is_group",
        message=f"the inventory has a group and a host that are both called {name}",
        what_to_do="Rename one of them. " + AGAIN,
        host=name,
    )


CANCELLED = Problem(
    code="cancelled",
    message="the job was cancelled before its end",
    what_to_do="Started again, a provisioning goes on from where it was, a remedy begins anew.",
)
TIMED_OUT = Problem(
    code="timed_out",
    message="the playbook took longer than the queen's setting run_timeout_s allows",
    what_to_do="Read in the job's events which task took so long, or raise run_timeout_s. " + AGAIN,
)
RUN_LOST = Problem(
    code="run_lost",
    message="the process that ran the playbook ended again and again before it could say how the run did",
    what_to_do="Look in the journal of the queen's machine for processes that were killed for lack of memory. " + AGAIN,
)
PASSWORD_LOST = Problem(
    code="sudo_password_lost",
    message="the queen was restarted during the job; the sudo password lived in its memory alone and is gone",
    what_to_do="Start the job again with sudo_password.",
)
INTERNAL = Problem(
    code="internal_error",
    message="an unexpected error ended the job; the queen's log has it",
    what_to_do="Start the job again.",
)
INTERRUPTED = Problem(
    code="interrupted",
    message="the queen was ended in a moment that left the job neither open nor closed",
    what_to_do="Start the job again.",
)
INTERRUPTED_BY_UPGRADE = Problem(
    code="interrupted_by_upgrade",
    message="the job was begun by another version of the queen, which did its steps in another way",
    what_to_do="Start the job again.",
)

# How a run may end before what it has to do in the end.
CUT_SHORT = {problem.code for problem in (CANCELLED, TIMED_OUT, PASSWORD_LOST, INTERRUPTED, INTERRUPTED_BY_UPGRADE)} | {
    "unreachable_host",
    "internal_error",
    RUN_LOST.code,
}


def _one_line(text: str) -> str:
    # ssh's banner of @ signs says nothing that its sentences do not.
    return " ".join(re.sub(r"@{3,}|\r", " ", text).split())[-_MAX_MESSAGE:]
