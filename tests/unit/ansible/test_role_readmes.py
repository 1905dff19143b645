"""Each role's README has the variables that its argument specs have, and a play that works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support import role_readmes

ROLES = sorted(path for path in role_readmes.ROLES.iterdir() if path.is_dir())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_variables_are_those_of_the_argument_specs(role: Path) -> None:
    written = (role / "README.md").read_text(encoding="utf-8")
    assert written == role_readmes.readme(role), "run `python -m tests.support.role_readmes`"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_it_says_what_the_role_does_and_shows_a_play(role: Path) -> None:
    text = (role / "README.md").read_text(encoding="utf-8")
    title, what, play = text.split("\n\n")[:3]
    assert title == f"# {role.name}"
    assert len(re.findall(r"\.(?:\s|$)", what)) == 2
    (shown,) = yaml.safe_load(re.sub(r"^```.*$", "", play, flags=re.MULTILINE))
    assert shown["become"] is True and role.name in play
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (role / link).exists(), link


def test_what_a_table_says_of_a_variable() -> None:
    options = {
        "size": {"type": "int", "default": 0, "description": "How\nlarge."},
        "kinds": {
            "type": "list", "elements": "dict", "required": True, "description": "Which.",
            "options": {"name": {"type": "str", "choices": ["a", "b"], "description": "a | b."}},
        },
        "where": {"type": "str", "default": "{{ here | default('') }}", "description": "Where."},
    }  # fmt: skip
    assert role_readmes.table(options).splitlines()[2:] == [
        "| `size` | int | `0` | How large. |",
        "| `kinds` | list of dict | required | Which. |",
        r"| `kinds[].name` | str: a, b |  | a \| b. |",
        r"| `where` | str | `{{ here \| default('') }}` | Where. |",
    ]
