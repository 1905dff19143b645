"""Who may import whom, and which file owns which outside library (docs/architecture.md, "Layers")."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "agent" / "llama_orch"

MAY_IMPORT = {
    "base": {"base"},
    "contract": {"contract"},
    "web": {"base", "contract", "web"},
    "queen": {"base", "contract", "client", "web", "queen"},
    "hive": {"base", "contract", "client", "web", "hive"},
    "worker": {"base", "contract", "web", "worker"},
    "client": {"base", "contract", "client"},
    "cli": {"base", "contract", "client", "cli", "demo_model", "packaged_model"},
    "demo_model": {"demo_model"},
    "packaged_model": {"packaged_model"},
    "wheelhouse": {"wheelhouse"},
}

OWNER = {
    "ansible_runner": {"queen/ansible/run_child.py"},
    "dbos": {"queen/jobs/engine.py", "queen/jobs/engine_records.py"},  # the workflow, and what the engine may read
    "sqlalchemy": {"queen/store/store.py", "queen/store/tables.py"},  # the queries, and the schema
    "watchfiles": {"queen/inventory/watch.py"},
    "pynvml": {"hive/devices/nvml_child.py"},
    "huggingface_hub": {"hive/models/hub/hub.py", "hive/models/hub/failures.py"},  # the calls, and what its errors mean
    "llama_cpp": {"worker/llama/binding.py"},
}


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@cache
def _imports(path: Path) -> frozenset[str]:
    """Absolute dotted names of all that `path` imports, relative imports resolved."""
    package = ("llama_orch", *path.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += (node.module or "").split(".") if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return frozenset(found)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path):
    part = _part(path)
    if part == "__init__":
        return
    for name in _imports(path):
        if name.startswith("llama_orch.") and name != "llama_orch.__version__":
            target = name.split(".")[1]
            assert target in MAY_IMPORT[part], f"{part} must not import {name}"


@pytest.mark.parametrize("library", OWNER)
def test_an_outside_library_has_one_owner(library: str):
    importers = {
        str(path.relative_to(PACKAGE))
        for path in _modules()
        if any(name.split(".")[0] == library for name in _imports(path))
    }
    assert importers == OWNER[library]


def test_contract_does_no_input_or_output():
    forbidden = {"socket", "subprocess", "os", "pathlib", "asyncio", "aiohttp", "sanic"}
    for path in (PACKAGE / "contract").glob("*.py"):
        assert not {name.split(".")[0] for name in _imports(path)} & forbidden, path.name
