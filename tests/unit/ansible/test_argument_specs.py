"""Each role's defaults and its argument specs are one list: what a user may set, with the value it then has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from .tasks import ROOT, tasks_of

ROLES = ROOT / "roles"
NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_there_are_roles() -> None:
    assert {"common", "hive", "preflight", "queen"} <= set(NAMES)


@pytest.mark.parametrize("role", NAMES)
def test_defaults_equal_argument_specs(role: str) -> None:
    options = load(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    described = {name: option["default"] for name, option in options.items() if "default" in option}

    assert load(ROLES / role / "defaults" / "main.yml") == described


@pytest.mark.parametrize("role", NAMES)
def test_every_option_is_described(role: str) -> None:
    for entry in load(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"].values():
        for name, option in entry.get("options", {}).items():
            assert option.get("description"), f"{role}: {name} has no description"


@pytest.mark.parametrize("role", NAMES)
def test_every_called_entry_point_has_a_spec(role: str) -> None:
    specs = set(load(ROLES / role / "meta" / "argument_specs.yml")["argument_specs"])

    called = set()
    for path in [*ROLES.glob("*/tasks/*.yml"), *(ROLES.parent / "playbooks").glob("*.yml")]:
        for task in tasks_of(load(path)):
            for module in ("ansible.builtin.import_role", "ansible.builtin.include_role"):
                if task.get(module, {}).get("name") == role:
                    called.add(task[module].get("tasks_from", "main"))

    assert called <= specs


@pytest.mark.parametrize("template", sorted(ROLES.glob("*/templates/etc/**/*.j2")), ids=lambda path: path.name)
def test_a_template_stands_where_its_file_will_stand(template: Path) -> None:
    role = template.relative_to(ROLES).parts[0]
    source = template.relative_to(ROLES / role / "templates").as_posix()
    tasks = [task for path in (ROLES / role / "tasks").glob("*.yml") for task in tasks_of(load(path))]
    uses = [task["ansible.builtin.template"] for task in tasks if "ansible.builtin.template" in task]

    files = load(ROLES / role / "vars" / "main.yml")
    places = {
        f"{{{{ {name}.path }}}}": file["path"]
        for name, file in files.items()
        if isinstance(file, dict) and "path" in file
    }
    destinations = [places.get(use["dest"], use["dest"]) for use in uses if use["src"] == source]

    assert [Path(destination).parent for destination in destinations] == [Path("/", source).parent]
