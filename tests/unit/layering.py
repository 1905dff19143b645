"""Who may import whom: rules over a tree of Python files, which know nothing of this project but what they are told."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A package's folder; modules are named by their dotted path below it."""

    folder: Path

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Every module by its name; a package by its folder's."""
        found: dict[str, Path] = {}
        for path in sorted(self.folder.rglob("*.py")):
            parts = path.relative_to(self.folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    def imports(self, module: str) -> frozenset[str]:
        """The package's own modules that `module` imports, those for the type checker alone included."""
        own = self.folder.name
        found: set[str] = set()
        for name in _imported(self.modules[module], self.folder):
            if name.split(".")[0] == own:
                found.add(self._module_of(name.split(".")[1:]))
        return frozenset(found - {module, ""})

    def outside(self, module: str) -> frozenset[str]:
        """The libraries that `module` imports."""
        return frozenset(name.split(".")[0] for name in _imported(self.modules[module], self.folder))

    def _module_of(self, parts: Sequence[str]) -> str:
        # What is imported from a module is no module.
        for end in range(len(parts), 0, -1):
            if (name := ".".join(parts[:end])) in self.modules:
                return name
        return ""


@cache
def _imported(path: Path, package: Path) -> frozenset[str]:
    """Absolute dotted names of all that a file imports, relative imports resolved."""
    here = (package.name, *path.relative_to(package).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(here[: len(here) - node.level + 1]) if node.level else []
            base += (node.module or "").split(".") if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return frozenset(found)


def wrong_parts(package: Package, may: Mapping[str, Collection[str]]) -> list[str]:
    """Imports from one part, a folder or file at the top, into another that it may not know."""
    wrong: list[str] = []
    for module in package.modules:
        part = module.split(".")[0]
        for name in package.imports(module):
            if part and (other := name.split(".")[0]) != part and other not in may.get(part, ()):
                wrong.append(f"{module} imports {name}")
    return wrong


def wrong_order(package: Package, part: str, order: Sequence[Collection[str]]) -> list[str]:
    """Imports within `part` that point upwards. `order` has its folders and files, the lowest first.

    What stands together in one place of the order knows nothing of each other.
    """
    place = {name: index for index, names in enumerate(order) for name in names}
    wrong: list[str] = []
    for module in package.modules:
        if not module.startswith(f"{part}."):
            continue
        mine = module.split(".")[1]
        if mine not in place:
            wrong.append(f"{module} has no place in the order of {part}")
            continue
        for name in package.imports(module):
            other = [*name.split("."), ""][1]
            if name.startswith(f"{part}.") and other != mine and place.get(other, len(order)) >= place[mine]:
                wrong.append(f"{module} imports {name}")
    return wrong


def circles(package: Package) -> list[str]:
    """Modules that import each other, directly or around a corner; a folder's own file counts for no circle."""
    graph = {module: package.imports(module) for module in package.modules}
    found: list[str] = []
    ended: set[str] = set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in ended:
            for other in sorted(graph[module]):
                visit(other, [*way, module])
            ended.add(module)

    for module in graph:
        visit(module, [])
    return found


def crowded(folders: Iterable[Path], most: int) -> list[str]:
    """Folders with more than `most` modules."""
    counts = {folder: len([path for path in folder.glob("*.py") if path.stem != "__init__"]) for folder in folders}
    return [f"{folder} has {count} modules" for folder, count in counts.items() if count > most]


def owners(package: Package, library: str) -> set[str]:
    """The files that import `library`."""
    return {
        str(path.relative_to(package.folder))
        for module, path in package.modules.items()
        if library in package.outside(module)
    }


def private_names(path: Path) -> list[str]:
    """Where a file takes a private name of another's: `x._y`, or `setattr(x, "_y", …)`."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            name = None if own else node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
            given = [one.value for one in node.args[1:2] if isinstance(one, ast.Constant)]
            name = next((str(one) for one in given if _is_private(str(one))), None)
        else:
            continue
        if name is not None:
            found.append(f"{path.name}:{node.lineno} takes {name}")
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
