"""`python -m tests.support.role_readmes`: writes each role's variables into its README, from its argument specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).parents[2] / "roles"
# What follows this line is written here; what stands before it, by people.
HEADING = "## Variables"
_BAR = "\\|"


def readme(role: Path) -> str:
    """The README as it should be: what people wrote, then a table for each entry point with variables of its own."""
    written = (role / "README.md").read_text(encoding="utf-8").partition(f"{HEADING}\n")[0]
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    return f"{written}{HEADING}\n\n{_tables(specs)}"


def _tables(specs: dict[str, Any]) -> str:
    known = specs["main"].get("options", {})
    parts = [table(known)] if known else ["None that a play may set.\n"]
    rows = ["| `tasks_from` | does |", "|---|---|"]
    for name, spec in specs.items():
        rows.append(f"| `{name}` | {spec['short_description']} |")
    parts.append("### Entry points\n\n" + "\n".join(rows) + "\n")
    for name, spec in specs.items():
        own = {key: option for key, option in spec.get("options", {}).items() if key not in known}
        if own:
            parts.append(f"### Of `{name}`\n\n{table(own)}")
    return "\n".join(parts)


def table(options: dict[str, Any]) -> str:
    """The options of an argument spec, those within others too, as `others[].name`."""
    return "\n".join(["| variable | type | default | what it says |", "|---|---|---|---|", *_rows(options, ""), ""])


def _rows(options: dict[str, Any], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, option in options.items():
        kind = f"{option['type']} of {option['elements']}" if "elements" in option else str(option["type"])
        if "choices" in option:
            kind += ": " + ", ".join(map(str, option["choices"]))
        cells = [f"`{prefix}{name}`", kind, _default(option), " ".join(option["description"].split())]
        rows.append(f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |")
        rows += _rows(option.get("options", {}), f"{prefix}{name}[].")
    return rows


def _default(option: dict[str, Any]) -> str:
    if option.get("required"):
        return "required"
    if "default" not in option:
        return ""
    value = option["default"]
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def main() -> None:
    """Write them all."""
    for role in sorted(path for path in ROLES.iterdir() if path.is_dir()):
        (role / "README.md").write_text(readme(role), encoding="utf-8")


if __name__ == "__main__":
    main()
