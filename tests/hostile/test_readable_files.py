"""What a user may read on the queen's host of what was brought there."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files to root")


def test_nobody_else_reads_the_inventory_that_the_queen_gets(tmp_path: Path):
    source, project = tmp_path / "source", tmp_path / "project"
    for path in (
        *("inventory/hosts.yml", "inventory/group_vars/all.yml", "inventory/group_vars/hives/vault.yml"),
        *(
            "inventory/host_vars/one.yml",
            "playbooks/site.yml",
            "playbooks/group_vars/all.yml",
            "roles/r/tasks/main.yml",
        ),
    ):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text("ansible_become_password: of somebody\n")
    (source / "ansible.cfg").touch()
    project.mkdir()
    # As an earlier version left it.
    (project / "inventory" / "group_vars" / "hives").mkdir(parents=True)
    (project / "inventory" / "group_vars" / "hives" / "vault.yml").write_text("ansible_become_password: of somebody\n")

    folders = [str(project / "inventory" / name) for name in ("", "group_vars", "host_vars")]
    variables = {
        "_queen_project": str(project),
        "_queen_user": getpass.getuser(),
        "_queen_manifests": [],
        "queen_project_source": str(source),
        "queen_inventory_source": str(source / "inventory"),
        "queen_wheelhouse_dir": str(tmp_path),
        "common_there": {
            path.rstrip("/"): "" for path in [*folders, str(project), *(f"{project}/{n}" for n in _OTHERS)]
        },
    }
    play = [
        {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "tasks": [{"ansible.builtin.include_role": {"name": "queen", "tasks_from": "project"}}],
        }
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(play))
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", "-e", json.dumps(variables)),
            *("-e", f"ansible_python_interpreter={sys.executable}", tmp_path / "play.yml"),
        ],
        env={**os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "roles"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    told = [path for path in project.rglob("*") if path.is_file() and "password" in path.read_text()]
    secret = [path for path in told if "tasks" not in path.parts and path.name != "site.yml"]
    assert {str(path.relative_to(project)) for path in secret} == {
        *("inventory/hosts.yml", "inventory/group_vars/all.yml", "inventory/group_vars/hives/vault.yml"),
        *("inventory/host_vars/one.yml", "playbooks/group_vars/all.yml"),
    }
    assert [path for path in secret if path.stat().st_mode & 0o77] == []
    for folder in ("inventory/group_vars", "inventory/host_vars", "playbooks/group_vars"):
        assert (project / folder).stat().st_mode & 0o777 == 0o700, folder


_OTHERS = ("wheelhouse", "secrets", "secrets/hives", "secrets/inference")
