"""Runs of real playbooks on this machine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from llama_orch.queen.ansible.runs import ProcessRuns
from llama_orch.queen.ansible.ssh import SshSetup
from tests.support.memory_runs import Task
from tests.support.queen_process import REPOSITORY
from tests.support.runs_contract import HOST, RunsContract

_VARIABLES = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}


class Project:
    """A project folder whose inventory has this machine, and no other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "playbooks").mkdir()
        shutil.copy(REPOSITORY / "ansible.cfg", folder)
        inventory = folder / "inventory"
        inventory.mkdir()
        hosts = {"all": {"children": {"hives": {"hosts": {HOST: _VARIABLES}}}}}
        (inventory / "hosts.yml").write_text(yaml.safe_dump(hosts))
        self.runs = ProcessRuns(
            folder=folder / "runs",
            project=folder,
            inventory=inventory,
            environment={
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(folder),
                "LANG": "C.UTF-8",
            },
            ssh=SshSetup(folder / "key", folder / "known_hosts", 5),
            timeout_s=300,
        )

    def write(self, playbook: str, tasks: Sequence[Task]) -> None:
        play = {"name": playbook, "hosts": "hives", "gather_facts": False, "tasks": [_task(task) for task in tasks]}
        (self.folder / "playbooks" / f"{playbook}.yml").write_text(yaml.safe_dump([play], sort_keys=False))


def _task(task: Task) -> dict[str, Any]:
    if task.fails is not None:
        return {"name": task.name, "ansible.builtin.fail": {"msg": task.fails}}
    if task.waits:
        return {"name": task.name, "ansible.builtin.command": "sleep 600"}
    return {"name": task.name, "ansible.builtin.debug": {"msg": "done"}}


@pytest.fixture
def place(tmp_path: Path) -> Project:
    return Project(tmp_path)


class TestProcessRuns(RunsContract):
    """What runs do, with ansible-playbook."""
