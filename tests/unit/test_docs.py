"""What docs/ says is what the code has: calls, settings, variables, metrics, failure codes, links."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from ruamel.yaml import YAML

from llama_orch.base.tokens import Token
from llama_orch.contract import errors, operations
from llama_orch.contract.errors import ApiError
from llama_orch.contract.openai.fields import UNSUPPORTED
from llama_orch.contract.operations import Operation
from llama_orch.contract.process import FailureCode
from llama_orch.hive import metrics as hive_metrics
from llama_orch.hive.settings import HiveSettings
from llama_orch.hive.workers import ending
from llama_orch.queen import metrics as queen_metrics
from llama_orch.queen.settings import QueenSettings
from llama_orch.web.app import Routes, create_app
from llama_orch.web.settings import Settings
from llama_orch.worker import metrics as worker_metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
AGENT = ROOT / "agent" / "llama_orch"
PACKAGE = ROOT / "agent" / "llama_orch"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
PARTS = {"Queen": operations.QUEEN, "Hive": operations.HIVE, "Worker": operations.WORKER}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def _without_fences(text: str) -> str:
    return _FENCE.sub("", text)


def _sections(text: str, level: int) -> dict[str, str]:
    """The text under each heading of this level, up to the next of the same level."""
    mark = "#" * level + " "
    found: dict[str, str] = {}
    for part in re.split(rf"^{mark}", _FENCE.sub(lambda m: m[0].replace("\n#", "\n\\#"), text), flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        found[title.strip()] = body
    return found


def _first_cells(text: str) -> list[str]:
    """Every `code` in the first column of the tables of `text`."""
    rows = re.findall(r"^\|([^|]*)\|", text, re.MULTILINE)
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row)]


# --- docs/api.md ------------------------------------------------------------------------------------------------------


def _described(part: str) -> dict[str, str]:
    sections = _sections(_sections(_page("api"), 2)[part], 3)
    assert all(re.match(r"(GET|POST|DELETE) /", title) for title in sections), list(sections)
    return sections


@pytest.mark.parametrize("part", PARTS)
def test_every_operation_is_described_and_no_other(part: str):
    assert set(_described(part)) == {f"{operation.method} {operation.path}" for operation in PARTS[part]}


_OPERATIONS = [
    pytest.param(part, operation, id=f"{part} {operation.name}") for part, known in PARTS.items() for operation in known
]


@pytest.mark.parametrize(("part", "operation"), _OPERATIONS)
def test_an_operation_has_a_curl_line_that_the_contract_takes(part: str, operation: Operation):
    text = _described(part)[f"{operation.method} {operation.path}"]
    lines = [line for kind, block in _FENCE.findall(text) for line in [block.replace("\\\n", " ")] if kind == "sh"]
    path = re.sub(r"\{\w+\}", r"[$\\w-]+", re.escape(operation.path).replace(r"\{", "{").replace(r"\}", "}"))
    fitting = [line for line in lines if re.search(rf"\${part.upper()}{path}(?=[\s\"?]|$)", line)]
    assert fitting, lines
    for line in fitting:
        assert ('-H "$AUTH"' in line or '-H "$INFERENCE"' in line) == operation.auth, line
        assert ("-X" in line) == (operation.method != "GET"), line
        for body in re.findall(r"-d '(\{.*?\})'", line, re.DOTALL):
            assert operation.request is not None, line
            operation.request.model_validate_json(body)


@pytest.mark.parametrize(("part", "operation"), _OPERATIONS)
def test_an_operations_fields_are_all_named_and_its_example_is_whole(part: str, operation: Operation):
    text = _described(part)[f"{operation.method} {operation.path}"]
    if operation.request is not None and operation is not operations.CHAT_COMPLETIONS:
        for name in operation.request.model_fields:
            assert re.search(rf"`{name}`|\"{name}\"", text), f"{name} is not described"
    for parameter in operation.query:
        assert parameter in text
    for kind, block in _FENCE.findall(text):
        if kind == "json" and operation.response is not None:
            _assert_whole(operation.response, json.loads(block))


def _assert_whole(model: type[BaseModel], example: dict[str, Any]) -> None:
    """`example` is valid and has exactly the fields that `model` has, at every depth that the example goes to."""
    shown = model.model_validate_json(json.dumps(example)).model_dump(mode="json", warnings=False)

    def compare(given: Any, full: Any, where: str) -> None:
        if isinstance(full, dict) and isinstance(given, dict):
            assert set(given) == set(full), where
            for key in given:
                compare(given[key], full[key], f"{where}.{key}")
        elif isinstance(full, list) and isinstance(given, list):
            for one, other in zip(given, full, strict=True):
                compare(one, other, f"{where}[]")

    compare(example, shown, model.__name__)


def test_the_table_of_errors_is_the_contracts():
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", _sections(_page("api"), 2)["Errors"], re.MULTILINE)
    classes = [ApiError, *ApiError.__subclasses__()]
    ours = [kind for kind in classes if kind.__module__ == errors.__name__]
    assert sorted(rows) == sorted((str(kind.status), kind.code) for kind in ours)


def test_the_examples_that_a_host_test_runs_are_there():
    blocks = [block for kind, block in _FENCE.findall(_page("api")) if kind == "bash"]
    assert [line for block in blocks for line in re.findall(r"http://\S+", block)] == [
        "http://localhost:8081/api/v1/workers",
        "http://localhost:8081/health",
        "http://localhost:8081/metrics",
    ]


# --- docs/deployment.md -----------------------------------------------------------------------------------------------


def _rows(text: str) -> dict[str, str]:
    """Rows of tables whose first column is one `name`, by that name."""
    return dict(re.findall(r"^\| `([a-z_]+)` \|(.*)\|$", text, re.MULTILINE))


def _as_shown(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, separators=(", ", ": "))


@pytest.mark.parametrize(("title", "model"), [("queen.toml", QueenSettings), ("hive.toml", HiveSettings)])
def test_every_setting_is_described_with_its_default(title: str, model: type[Settings]):
    rows = _rows(_sections(_page("deployment"), 3)[title])
    assert set(rows) == set(model.model_fields)
    for name, field in model.model_fields.items():
        if field.default_factory is None and field.default is not None:
            default = str(field.default) if isinstance(field.default, Path) else field.default
            assert f"`{_as_shown(default)}`" in rows[name], name


@pytest.mark.parametrize("role", sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir()))
def test_every_variable_of_a_role_is_described_with_its_default(role: str):
    defaults: dict[str, Any] = YAML(typ="safe").load(ROOT / "roles" / role / "defaults" / "main.yml") or {}
    rows = _rows(_sections(_page("deployment"), 3)["Variables of the inventory"])
    assert set(defaults) == {name for name in rows if name.startswith(f"{role}_")}
    for name, default in defaults.items():
        if not (isinstance(default, str) and "{{" in default):
            assert f"`{_as_shown(default)}`" in rows[name], name


def test_settings_files_in_the_docs_are_toml_with_known_keys():
    models = {"queen.toml": QueenSettings, "hive.toml": HiveSettings}
    for title, model in models.items():
        for kind, block in _FENCE.findall(_sections(_page("deployment"), 3)[title]):
            if kind == "toml":
                model.model_validate(tomllib.loads(block))


# --- docs/monitoring.md -----------------------------------------------------------------------------------------------

_METRIC = re.compile(r"\bllama_orch_(?:queen|hive|worker)_[a-z0-9_]+")
_SUFFIXES = re.compile(r"_(?:bucket|count|sum|created)$")


@pytest.fixture(scope="module")
def metrics() -> dict[str, set[str]]:
    """The labels of every metric by its name as a scrape shows it, registered as the processes themselves do."""
    registry = CollectorRegistry()
    worker_metrics.Metrics(registry)
    hive_metrics.Metrics(registry)
    registries = [registry, queen_metrics.QueenMetrics().registry]
    for part in ("queen", "hive", "worker"):
        create_app(f"docs-{part}", part, Routes(()), token=Token("a-token-of-enough-length"), registry=registry)
    found: dict[str, set[str]] = {}
    for collector in (one for registry in registries for one in registry._collector_to_names):
        family = next(iter(collector.collect()))
        found[family.name + ("_total" if family.type == "counter" else "")] = set(getattr(collector, "_labelnames", ()))
    return found


def test_every_metric_is_described_with_its_labels_and_no_other(metrics: dict[str, set[str]]):
    described: dict[str, set[str]] = {}
    for names, _, labels in re.findall(
        r"^\| (`llama_orch_[^|]*) \|([^|]*)\|([^|]*)\|", _page("monitoring"), re.MULTILINE
    ):
        for name in re.findall(r"`(\w+)`", names):
            described[name] = set(re.findall(r"`(\w+)`", labels))
    assert described == metrics


def test_alerts_and_queries_name_metrics_that_there_are(metrics: dict[str, set[str]]):
    blocks = [block for _, block in _FENCE.findall(_page("monitoring"))]
    named = {name for block in blocks for name in _METRIC.findall(block)}
    assert {_SUFFIXES.sub("", name) for name in named} <= set(metrics)


def test_the_alerts_are_rules():
    block = _FENCE.findall(_sections(_page("monitoring"), 2)["Alerts"])[0][1]
    rules = YAML(typ="safe").load(block)["groups"][0]["rules"]
    assert len(rules) == 5
    assert all({"alert", "expr", "annotations"} <= set(rule) for rule in rules)


# --- docs/troubleshooting.md ------------------------------------------------------------------------------------------


def test_every_failure_code_is_explained_and_no_other():
    general = {kind.code for kind in [ApiError, *ApiError.__subclasses__()]}
    explained = {code for code in _first_cells(_page("troubleshooting")) if re.fullmatch(r"[a-z]+(_[a-z]+)*", code)}
    assert explained - general == set(_failure_codes()) - general


def test_every_signal_that_has_advice_is_explained_and_no_other():
    explained = {code for code in _first_cells(_page("troubleshooting")) if code.startswith("SIG")}
    assert explained == set(ending.ADVICE)


def _failure_codes() -> dict[str, str]:
    """Each code that a node, job, worker, download or request can end with, and a file that has it."""
    found = dict.fromkeys(FailureCode.__args__, "contract/process.py")
    found |= dict.fromkeys(ending.Reason.__args__, "hive/workers/ending.py")
    for path in PACKAGE.rglob("*.py"):
        found |= dict.fromkeys(_codes_of(ast.parse(path.read_text(encoding="utf-8"))), str(path.relative_to(PACKAGE)))
    for path in (ROOT / "roles").rglob("*.yml"):
        for code in re.findall(r"(?:^|[\s'\"])\[([a-z]+(?:_[a-z]+)+)\]\s", path.read_text(encoding="utf-8"), re.M):
            found[code] = str(path.relative_to(ROOT))
    for path in (ROOT / "roles").glob("*/filter_plugins/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused":
                code = node.args[0]
                either = [code.body, code.orelse] if isinstance(code, ast.IfExp) else [code]
                found |= {str(ast.literal_eval(one)): str(path.relative_to(ROOT)) for one in either}
    return found | dict.fromkeys(UNSUPPORTED, "contract/openai/fields.py")


_RAISED = {"Failed", "CannotServe", "HiveSilent"}


def _codes_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            given += node.args[:1] if name in _RAISED else []
            for value in given:
                if isinstance(value, ast.Constant) and re.fullmatch(r"[a-z]+(_[a-z]+)*", str(value.value)):
                    yield str(value.value)
        elif isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "_KNOWN":
            yield from (row.elts[1].value for row in node.value.elts)  # type: ignore[union-attr]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            # how, code = "ended", "crashed"
            for target, value in zip(node.targets[0].elts, getattr(node.value, "elts", ()), strict=False):
                if getattr(target, "id", "") == "code":
                    yield str(value.value)


# --- all pages --------------------------------------------------------------------------------------------------------


def _anchors(text: str) -> set[str]:
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} (.+)$", _without_fences(text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        repeated = next((n for n in range(1, 100) if f"{slug}-{n}" not in found), 0)
        found.add(f"{slug}-{repeated}" if slug in found else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_fences(text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), target
        if anchor:
            assert anchor in _anchors(other.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("part", ["queen", "hive", "worker"])
def test_the_maps_name_each_file_and_no_other(part: str):
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    chapter = text.partition(f"## Inside {'a' if part != 'queen' else 'the'} {part}\n")[2].partition("\n## ")[0]
    named: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", chapter, re.MULTILINE):
        folder = re.match(r"`([a-z_/]+/)`: ", row)
        named |= {(folder[1] if folder else "") + name for name in re.findall(r"`([a-z_/]+\.py)`", row)}
    there = {str(path.relative_to(AGENT / part)) for path in (AGENT / part).rglob("*.py") if path.stem != "__init__"}
    assert named == {name for name in there if "migrations/" not in name}


def test_what_the_docs_name_is_there():
    for page in (*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        named = set(re.findall(r"`((?:tests|agent|roles|playbooks)/[\w./-]+\.\w+)`", page.read_text(encoding="utf-8")))
        assert not [path for path in sorted(named) if not (ROOT / path).exists()], page.name
