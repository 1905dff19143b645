from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llama_orch.wheelhouse import environment
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.processors import GENERATIONS, Generation

ROOT = Path(__file__).parents[3]
FASTEST, NEXT, *_ = [one.name for one in reversed(GENERATIONS)]


class World:
    """An engine whose wheels are named after what is in them, and what was installed of them, in order."""

    def __init__(self) -> None:
        self.installed: list[str] = []
        self.computes: Iterator[bool] = iter([True])

    def wheel(self, generations: Sequence[Generation], *, then: str) -> Path:
        assert then
        return Path("-".join(one.name for one in generations) + ".whl")

    def run_pip(self, arguments: Sequence[str], **_: Any) -> None:
        assert {"--no-compile", "--quiet"} <= set(arguments)
        if arguments[-1].endswith(".whl"):
            assert "--force-reinstall" in arguments
            self.installed.append(arguments[-1].removesuffix(".whl"))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(environment, "engine_for", lambda *_: world)
    monkeypatch.setattr(environment, "run_pip", world.run_pip)
    monkeypatch.setattr(environment, "features_here", lambda: GENERATIONS[-1].features)
    monkeypatch.setattr(environment, "_computes", lambda: next(world.computes))
    return world


def test_one_library_is_enough_where_it_computes(world: World, tmp_path: Path) -> None:
    environment.fill(ROOT, tmp_path, ["hive", "queen"], every_processor=False)

    assert world.installed == [FASTEST]


def test_every_processor_gets_all(world: World, tmp_path: Path) -> None:
    environment.fill(ROOT, tmp_path, ["dev"], every_processor=True)

    assert world.installed == ["-".join(one.name for one in GENERATIONS)]


def test_a_library_that_does_not_compute_is_followed_by_the_next(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    world.computes = iter([False, True])

    environment.fill(ROOT, tmp_path, ["hive", "queen"], every_processor=False)

    assert world.installed == [FASTEST, f"{NEXT}-{FASTEST}"]
    assert f"{FASTEST} does not compute on this machine: adding {NEXT}" in capfd.readouterr().err


def test_where_none_computes_the_message_says_how_to_see_why(world: World, tmp_path: Path) -> None:
    world.computes = iter([False] * len(GENERATIONS))

    with pytest.raises(WheelhouseError, match=r"no library.*llama_orch.worker.self_test` says how each failed"):
        environment.fill(ROOT, tmp_path, ["hive"], every_processor=False)
    assert len(world.installed) == len(GENERATIONS)
