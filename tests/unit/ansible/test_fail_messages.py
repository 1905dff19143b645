"""What roles and playbooks say where they fail: `[code] message`, and `Do: ...` on a line of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from llama_orch.queen.ansible.failures import classify

from .tasks import ROOT, tasks_of

CODE = re.compile(r"\[([a-z][a-z0-9_]*)\] ")
MESSAGE = re.compile(r"(?P<code>\[[^]]+\] |\{\{.*?\}\}\n?)(?P<what>.+)\nDo: (?P<advice>[^\n]+)", re.DOTALL)
TEMPLATED = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
# A playbook that hands on what a role said.
HANDED_ON = "{{ nvidia_driver_problem | default('') }}"
# What the hive answers stands in these, and what to do with it.
OF_THE_HIVE = {"models.yml", "worker.yml", "workers.yml"}


class Said(NamedTuple):
    """One message, as it stands in the file."""

    file: str
    task: str
    text: str

    @property
    def codes(self) -> list[str]:
        """All that it may begin with; none where a filter decides on it."""
        return CODE.findall(self.text.partition("\n")[0])


def _said() -> list[Said]:
    found: list[Said] = []
    for path in [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/*.yml")]:
        for task in tasks_of(yaml.safe_load(path.read_text(encoding="utf-8"))):
            for module, word in (("ansible.builtin.assert", "fail_msg"), ("ansible.builtin.fail", "msg")):
                if module in task:
                    found.append(Said(str(path.relative_to(ROOT)), task["name"], str(task[module].get(word, ""))))
    return found


SAID = [said for said in _said() if said.text != HANDED_ON and Path(said.file).name not in OF_THE_HIVE]


def test_all_are_found() -> None:
    assert len(SAID) > 40


@pytest.mark.parametrize("said", SAID, ids=lambda said: f"{said.file}: {said.task}")
def test_a_message_has_a_code_and_what_to_do(said: Said) -> None:
    found = MESSAGE.fullmatch(said.text)
    assert found, said.text
    assert said.text.count("\nDo: ") == 1
    assert found["advice"].endswith((".", "}}"))
    assert found["advice"][0].isupper() or found["advice"].startswith("{{ ")
    # What stands before the line must not swallow its beginning, as Jinja's own lines and -}} do.
    assert not found["what"].endswith(("-}}", "%}"))


@pytest.mark.parametrize("said", SAID, ids=lambda said: f"{said.file}: {said.task}")
def test_the_queen_reads_from_it_code_message_and_advice(said: Said) -> None:
    plain = TEMPLATED.sub("Told by the host.\nOn two lines", MESSAGE.fullmatch(said.text)["what"])  # type: ignore[index]
    advice = TEMPLATED.sub("Something", MESSAGE.fullmatch(said.text)["advice"])  # type: ignore[index]
    for code in said.codes or ["decided_by_a_filter"]:
        problem = classify(f"[{code}] {plain}\nDo: {advice}\n", task=said.task, host="box")
        assert (problem.code, problem.what_to_do) == (code, advice)
        assert problem.message == " ".join(plain.split())


def test_each_code_is_explained() -> None:
    explained = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert [code for said in SAID for code in said.codes if f"`{code}`" not in explained] == []
