"""Tags choose what a run does: driver, release, config, workers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .tasks import ROOT, tasks_of

INSTALLS, CONFIGURES = "hive : Install the agent", "hive : Configure the agent"
LOOKS, STARTS, DRIVES = "See whether the host can be a hive", "hive : Start the agent", "Install the NVIDIA driver"
# Some of the tasks that each tag has, and some that it has not.
CHOSEN = {
    "driver": ({DRIVES, "Reboot the host", LOOKS}, {INSTALLS, CONFIGURES, STARTS}),
    "release": ({LOOKS, INSTALLS, STARTS}, {DRIVES, CONFIGURES}),
    "config": ({LOOKS, CONFIGURES, STARTS}, {DRIVES, INSTALLS}),
    "workers": (set[str](), {DRIVES, LOOKS, INSTALLS, CONFIGURES, STARTS}),
}
# What every run does, whatever is chosen: no earlier run interferes, and what the site declares makes sense.
ALWAYS = {"common : Wait for what an earlier run left, and mend it", "hive : Check what the site declares for the hive"}
# These give way to declared sets.
NOT_OURS = {"models.yml", "worker.yml", "workers.yml"}


def listed(playbook: str, *words: str) -> str:
    """What Ansible would do, as it lists it."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "here,", f"playbooks/{playbook}.yml", *words],
        cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_site_has_these_tags() -> None:
    tags = {
        tag for found in re.findall(r"TASK TAGS: \[(.*)\]", listed("site", "--list-tags")) for tag in found.split(", ")
    }
    assert tags - {""} == {"always", *CHOSEN}


@pytest.mark.parametrize("tag", CHOSEN)
def test_a_tag_chooses_what_it_says(tag: str) -> None:
    tasks = set(re.findall(r"^ {6}(\S.*?)\s*TAGS: ", listed("hive", "--list-tasks", f"--tags={tag}"), re.MULTILINE))
    those, others = CHOSEN[tag]
    assert those | ALWAYS <= tasks
    assert not others & tasks


def test_workers_alone_are_brought_about() -> None:
    tasks = re.findall(r"^ {6}(\S.*?)\s*TAGS: \[(.*)\]", listed("hive", "--list-tasks", "--tags=workers"), re.MULTILINE)
    assert {name for name, tags in tasks if "workers" in tags.split(", ")}
    assert all({"always", "workers"} & set(tags.split(", ")) for _, tags in tasks)


INCLUDES = [
    (path, task)
    for path in [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/*.yml")]
    if path.name not in NOT_OURS
    for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8")))
    if {"ansible.builtin.include_tasks", "ansible.builtin.include_role"} & set(task)
]


@pytest.mark.parametrize(("path", "task"), INCLUDES, ids=lambda value: getattr(value, "name", ""))
def test_what_is_included_while_it_runs_is_done_whole(path: Path, task: dict[str, object]) -> None:
    # Ansible gives an include's tags to nothing that is in it.
    (what,) = (task[name] for name in task if str(name).startswith("ansible.builtin.include_"))
    assert isinstance(what, dict) and what.get("apply") == {"tags": "always"}, f"{path}: {task['name']}"
