from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.wheelhouse import corrections, sources
from llama_orch.wheelhouse.corrections import CORRECTIONS
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.locks import Pin


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Path:
    for one in CORRECTIONS:
        path = tmp_path / one.path
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() if path.exists() else ""
        path.write_text(before + f"{one.wrong}\n" * one.times + "the rest\n")
    return tmp_path


def test_what_is_wrong_is_put_right_and_nothing_else(llama_cpp: Path) -> None:
    corrections.apply(llama_cpp)

    for one in CORRECTIONS:
        text = (llama_cpp / one.path).read_text()
        assert text.count(one.right) >= one.times
        assert one.wrong not in text.replace(one.right, "")
        assert "the rest\n" in text


@pytest.mark.parametrize("change", ["gone", "once more", "file"])
def test_other_sources_end_the_build(llama_cpp: Path, change: str) -> None:
    one = CORRECTIONS[0]
    path = llama_cpp / one.path
    if change == "file":
        path.unlink()
    else:
        path.write_text(path.read_text().replace(one.wrong, "") if change == "gone" else path.read_text() + one.wrong)

    with pytest.raises(WheelhouseError, match=f"{one.path} is not as it was"):
        corrections.apply(llama_cpp)


def test_other_corrections_are_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = Pin("llama-cpp-python", "1", "", ("sha256:" + "0" * 64,))
    asked: list[str] = []

    def filled_once(folder: Path, _: object) -> Path:
        asked.append(folder.name)
        (folder / "llama_cpp_python-1").mkdir(parents=True)
        return folder

    monkeypatch.setattr(sources, "filled_once", filled_once)
    sources.binding(pin, tmp_path)
    monkeypatch.setattr(corrections, "CORRECTIONS", CORRECTIONS[:1])
    sources.binding(pin, tmp_path)

    assert len(set(asked)) == 2
