"""Who may import whom, and which file owns which outside library (docs/architecture.md, "Layers")."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.unit import layering
from tests.unit.layering import Package

ROOT = Path(__file__).parents[2]
PACKAGE = Package(ROOT / "agent" / "llama_orch")
MOST_MODULES = 16

MAY_IMPORT = {
    "base": set[str](),
    "contract": set[str](),
    "client": {"base", "contract"},
    "web": {"base", "contract"},
    "queen": {"base", "contract", "client", "web"},
    "hive": {"base", "contract", "client", "web"},
    "worker": {"base", "contract", "web"},
    "cli": {"base", "contract", "client", "demo_model", "packaged_model"},
    "packaged_model": {"base"},
}

# Of each part, what it is made of, the lowest first.
QUEEN = (
    {"settings", "metrics"},
    {"records"},
    {"store", "inventory"},
    {"ansible", "fleet"},
    {"jobs"},
    {"nodes"},
    {"node_pages"},
    {"queen"},
    {"routes"},
    {"app"},
    {"main"},
    {"__main__"},
)
HIVE = (
    {"settings", "problems", "ordered_writes", "looking", "child_environment", "shim"},
    {"devices"},
    {"models"},
    {"workers"},
    {"metrics", "stop_workers"},
    {"agent"},
    {"routes"},
    {"app"},
    {"main"},
    {"__main__"},
)

WORKER = (
    {"spec", "metrics", "budget", "scheduler", "self_test_model"},
    {"generation"},
    {"batching", "grammar", "llama", "requests"},
    {"chat", "confinement"},
    {"service", "self_test"},
    {"orders", "self_test_child"},
    {"shapes", "embeddings"},
    {"routes"},
    {"process"},
    {"__main__"},
)

ORDER = {"queen": QUEEN, "hive": HIVE, "worker": WORKER}

OWNER = {
    "alembic": {
        "queen/store/schema.py",
        "queen/store/migrations/env.py",
        "queen/store/migrations/versions/v0001_first.py",
        "queen/store/migrations/versions/v0002_principal.py",
    },
    "ansible_runner": {"queen/ansible/run_child.py"},
    "dbos": {"queen/jobs/engine.py", "queen/jobs/engine_records.py"},  # the workflow, and what the engine may read
    "watchfiles": {"queen/inventory/watch.py"},
    "pynvml": {"hive/devices/nvml_child.py"},
    "huggingface_hub": {"hive/models/hub/hub.py", "hive/models/hub/failures.py"},  # the calls, and what errors mean
    "llama_cpp": {"worker/llama/binding.py"},
}
# Libraries that one folder owns.
OWNING_FOLDER = {"sqlalchemy": ("queen/store/", "queen/jobs/engine_records.py")}
# What only one folder of the queen may call: whoever begins a run, and whoever asks a hive.
ONLY = {
    "queen.ansible.runs": {"queen.jobs", "queen.queen"},
    "queen.fleet.hives": {"queen.fleet", "queen.jobs", "queen.queen"},
}


def test_parts_know_only_what_is_below_them():
    assert layering.wrong_parts(PACKAGE, MAY_IMPORT) == []


@pytest.mark.parametrize("part", ORDER)
def test_folders_of_a_part_know_only_what_is_below_them(part: str):
    assert layering.wrong_order(PACKAGE, part, ORDER[part]) == []


def test_no_file_imports_another_in_a_circle():
    assert layering.circles(PACKAGE) == []


def test_a_folder_can_be_overlooked():
    # The command has a file for each of its words, and the wheelhouse stands apart.
    folders = [
        path.parent for path in PACKAGE.folder.rglob("__init__.py") if path.parent.name not in {"cli", "wheelhouse"}
    ]
    assert layering.crowded(folders, MOST_MODULES) == []


@pytest.mark.parametrize("library", OWNER)
def test_an_outside_library_has_one_owner(library: str):
    assert layering.owners(PACKAGE, library) == OWNER[library]


@pytest.mark.parametrize("library", OWNING_FOLDER)
def test_an_outside_library_has_one_folder(library: str):
    assert {
        owner for owner in layering.owners(PACKAGE, library) if not owner.startswith(OWNING_FOLDER[library])
    } == set()


@pytest.mark.parametrize("module", ONLY)
def test_only_jobs_begin_runs_and_only_the_fleet_asks_hives(module: str):
    users = {name for name in PACKAGE.modules if module in PACKAGE.imports(name)}
    assert {
        name for name in users if not any(name == one or name.startswith(f"{one}.") for one in ONLY[module])
    } == set()


def test_the_hub_is_asked_by_whoever_wants_and_knows_no_downloads():
    hub = [name for name in PACKAGE.modules if name.startswith("hive.models.hub.")]
    assert [(name, one) for name in hub for one in PACKAGE.imports(name) if "downloads" in one] == []


def test_contract_does_no_input_or_output():
    forbidden = {"socket", "subprocess", "os", "pathlib", "asyncio", "aiohttp", "sanic"}
    for module in PACKAGE.modules:
        if module.split(".")[0] == "contract":
            assert not PACKAGE.outside(module) & forbidden, module


def test_unit_tests_of_the_hive_take_public_names_alone():
    files = sorted((ROOT / "tests" / "unit" / "hive").rglob("test_*.py"))
    assert [found for path in files for found in layering.private_names(path)] == []


def made_up(folder: Path, files: dict[str, str]) -> Package:
    """A package whose files, by dotted name, hold these lines."""
    for name, text in files.items():
        path = folder.joinpath("house", *name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for parent in path.relative_to(folder).parents:
            if str(parent) != ".":
                (folder / parent / "__init__.py").touch()
    return Package(folder / "house")


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_wrong_import_in_a_part_is_found(tmp_path: Path, part: str):
    for other in sorted({*MAY_IMPORT, "wheelhouse"} - MAY_IMPORT[part] - {part}):
        files = {f"{part}.deep.a": f"from ...{other} import b\n", f"{other}.b": ""}
        package = made_up(tmp_path / f"{part}-{other}", files)
        assert layering.wrong_parts(package, MAY_IMPORT) == [f"{part}.deep.a imports {other}.b"]


@pytest.mark.parametrize("part", ORDER)
def test_a_wrong_import_in_a_folder_is_found(tmp_path: Path, part: str):
    order = ORDER[part]
    for names, above in pairwise(order):
        low, high = min(names), min(above)
        files = {
            f"{part}.{low}.a": f"from house.{part}.{high} import b\n",
            f"{part}.{high}.b": f"from ..{low} import a\n",
        }
        package = made_up(tmp_path / low, files)
        assert layering.wrong_order(package, part, order) == [f"{part}.{low}.a imports {part}.{high}.b"]
    for names in order:
        if len(names) > 1:
            one, other = sorted(names)[:2]
            files = {f"{part}.{one}": f"from .{other} import x\n", f"{part}.{other}": ""}
            beside = made_up(tmp_path / f"beside-{one}", files)
            assert layering.wrong_order(beside, part, order) == [f"{part}.{one} imports {part}.{other}"]
    stranger = made_up(tmp_path / "stranger", {f"{part}.unheard_of": ""})
    assert layering.wrong_order(stranger, part, order) == [f"{part}.unheard_of has no place in the order of {part}"]


def test_a_circle_is_found(tmp_path: Path):
    files = {
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import c\n",
        "b": "from .a import x\n",
        "c": "from house import b\n",
    }
    assert layering.circles(made_up(tmp_path, files)) == ["a -> c -> b -> a"]


def test_a_crowd_and_a_second_owner_are_found(tmp_path: Path):
    files = {f"m{number}": "import sqlalchemy.orm\n" for number in range(MOST_MODULES + 1)}
    package = made_up(tmp_path, files)
    assert len(layering.crowded([package.folder], MOST_MODULES)) == 1
    assert len(layering.owners(package, "sqlalchemy")) == MOST_MODULES + 1


def test_a_private_name_in_a_test_is_found(tmp_path: Path):
    path = tmp_path / "test_x.py"
    path.write_text('a._b()\nself._own()\nmonkeypatch.setattr(a, "_c", 1)\nmonkeypatch.setattr(a, "d", 1)\na.__doc__\n')
    assert sorted(layering.private_names(path)) == ["test_x.py:1 takes _b", "test_x.py:3 takes _c"]
