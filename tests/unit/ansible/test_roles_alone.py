"""Each role by itself in a play, with nothing before it: it looks at the host by itself, or says at once what to add.

Looks without changes at this machine, as whoever runs the tests: nothing is written but below the test's folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llama_orch.wheelhouse.processors import LEAST
from tests.support.playbook_run import Run

from .tasks import ROOT

# What a host is like that can be all; without it the machine that the tests run on is looked at.
SUITABLE = {
    "os_id": "debian", "os_version": "12", "os_name": "Debian", "arch": "x86_64", "systemd": True, "glibc": "2.36",
    "glibcxx": "3.4.30", "memory_bytes": 2**33, "free_bytes": {"/opt": 2**40, "/var/lib": 2**40},
    "pythons": [{"series": "3.11", "path": sys.executable}], "firewalls": [], "nvidia_gpus": [],
    "processor_features": sorted(LEAST),
}  # fmt: skip


def play(folder: Path, role: str, *, entry: str = "main", **variables: object) -> Run:
    """Look without changes at what a play would do that has nothing but this role."""
    task = {"ansible.builtin.include_role": {"name": role, "tasks_from": entry, "apply": {"tags": ["always"]}}}
    file = folder / "play.yml"
    file.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    known = {"llama_orch_wheelhouse_dir": str(folder), "llama_orch_secrets_dir": str(folder / "secrets")}
    done = subprocess.run(
        [
            Path(sys.executable).with_name("ansible-playbook"), "--check", "-i", "here,", "-c", "local",
            "-e", f"ansible_python_interpreter={sys.executable}", "-e", json.dumps({**known, **variables}), file,
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
        | {"ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    return Run.of_process(done, 0)


def wheels(folder: Path, part: str) -> None:
    """A wheelhouse in which nothing but the manifest is real: a look installs none of it."""
    home = folder / "r-1"
    home.mkdir()
    (folder / f"{part}-py3.11-x86_64").symlink_to(home.name)
    (home / "wheels.tar").touch()
    manifest = {"release": "r-1", "pip": "pip.whl", "glibc": "2.17", "glibcxx": "3.4.20", "files": []}
    (home / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("part", ["hive", "queen"])
def test_a_service_looks_at_its_host_by_itself(part: str, tmp_path: Path) -> None:
    more = {"preflight_host": SUITABLE, "queen_project_source": str(ROOT)}
    missing = play(tmp_path, part, **more)
    assert "[no_wheelhouse] here has Python 3.11" in missing.words
    assert "Do: Run `make wheelhouse`" in missing.words

    wheels(tmp_path, part)
    run = play(tmp_path, part, **more)

    assert run.status == 0, run.output
    assert f"TASK [{part} : Write the settings]" in run.output
    assert not (tmp_path / "secrets").exists()


def test_the_queens_database_has_its_password_in_a_file(tmp_path: Path) -> None:
    wheels(tmp_path, "queen")
    password = tmp_path / "password"
    password.write_text("s3cret")
    more = {"preflight_host": SUITABLE, "queen_project_source": str(ROOT)}
    for given in ({"queen_database_url": "postgresql+psycopg://queen:s3cret@h/db"},
                  {"queen_database_password_file": str(tmp_path / "none")}):  # fmt: skip
        run = play(tmp_path, "queen", **more, **given)
        assert "[invalid_setting] variables of here" in run.words and "s3cret" not in run.output

    given = {"queen_database_url": "postgresql+psycopg://queen@h/db", "queen_database_password_file": str(password)}
    run = play(tmp_path, "queen", **more, **given)
    assert run.status == 0, run.output
    assert re.search(r"Write the password of the database\] \*+\nchanged: ", run.output), run.output
    assert "s3cret" not in run.output


def test_preflight_stands_alone(tmp_path: Path) -> None:
    wheels(tmp_path, "queen")
    settings = {"preflight_part": "queen", "preflight_wheelhouse_dir": str(tmp_path), "preflight_host": SUITABLE}
    run = play(tmp_path, "preflight", **settings)
    assert run.status == 0, run.output
    assert "TASK [preflight : Remember what the host was looked at for]" in run.output


def test_the_driver_looks_at_its_host_by_itself(tmp_path: Path) -> None:
    run = play(tmp_path, "nvidia_driver")
    assert "TASK [preflight : Keep what was found]" in run.output
    assert "TASK [nvidia_driver : Refuse what cannot work]" in run.output
    assert "undefined" not in run.output


def test_a_host_without_a_gpu_keeps_its_modules(tmp_path: Path) -> None:
    run = play(tmp_path, "nvidia_driver", preflight_host=SUITABLE)
    assert run.status == 0, run.output
    assert run.changed == {"here": 0}


def test_a_remedy_looks_at_its_host_by_itself(tmp_path: Path) -> None:
    run = play(tmp_path, "gpu_remedy", entry="reload_driver", preflight_host=SUITABLE)
    assert "TASK [common : Name this run]" in run.output
    assert "undefined" not in run.output
    assert "Say what would be done" in run.output or "[no_driver] here has no NVIDIA driver" in run.words


@pytest.mark.parametrize(("role", "code"), [("gpu_remedy", "[no_remedy]"), ("common", "[no_role_of_its_own]")])
def test_a_role_of_entry_points_says_so(role: str, code: str, tmp_path: Path) -> None:
    run = play(tmp_path, role)
    assert run.status == 2
    assert code in run.words and "Do: " in run.words


def test_a_variable_by_its_old_name_is_refused(tmp_path: Path) -> None:
    run = play(tmp_path, "preflight", preflight_host=SUITABLE, gpu_remedy_at_once=2)
    assert run.status == 2
    assert "[variable_renamed] gpu_remedy_at_once" in run.words
    assert "Do: Set llama_orch_hosts_at_once instead." in run.words
