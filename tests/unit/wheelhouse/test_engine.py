from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from llama_orch.wheelhouse import cuda, engine
from llama_orch.wheelhouse.engine import Engine
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.processors import GENERATIONS

ROOT = Path(__file__).parents[3]


def compiler(folder: Path, version: str) -> str:
    """The path of a program that says it is that compiler."""
    folder.mkdir()
    program = folder / "g++"
    program.write_text(f"#!/bin/sh\necho 'g++ (Debian {version}) {version}'\n")
    program.chmod(0o755)
    return str(program)


def keys(cache: Path) -> tuple[str, str]:
    return Engine(ROOT, cache).key, cuda.backend(ROOT, cache, None, "86-real").key()


def test_another_compiler_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = keys(tmp_path)
    found = {here}
    for version in ("12.2.0", "12.4.0"):
        monkeypatch.setenv("CXX", compiler(tmp_path / version, version))
        found.add(keys(tmp_path))

    assert len({one for one, _ in found}) == len({other for _, other in found}) == 3
    monkeypatch.delenv("CXX")
    assert keys(tmp_path / "elsewhere") == here


@pytest.mark.parametrize("name", ["amx_guard.h", "hook.cmake", "arc4random.c", "params.c"])
def test_a_changed_guard_or_hook_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = keys(tmp_path)
    changed = tmp_path / "cpp"
    shutil.copytree(engine.CPP, changed)
    (changed / name).write_text((changed / name).read_text() + "\n")
    monkeypatch.setattr(engine, "CPP", changed)

    after = keys(tmp_path)
    assert (after[0] != before[0], after[1] != before[1]) == (True, True)


def test_a_compiler_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent/gcc -m64")

    with pytest.raises(WheelhouseError, match="CC is '/nonexistent/gcc', which is not there"):
        _ = Engine(ROOT, tmp_path).key


def test_one_wheel_for_all_is_taken_before_one_for_this_machine(tmp_path: Path) -> None:
    made = Engine(ROOT, tmp_path)
    for generations in (GENERATIONS, GENERATIONS[:1]):
        names = "-".join(one.name for one in generations)
        folder = tmp_path / "engine" / made.key / names
        folder.mkdir(parents=True)
        (folder / "llama_cpp_python-1-py3-none-linux_x86_64.whl").touch()
        assert made.wheel(GENERATIONS[:1]).parent.name == "-".join(one.name for one in GENERATIONS)


def test_every_file_is_given_the_guard_from_beside_the_build(tmp_path: Path) -> None:
    options = engine.guarded(tmp_path)

    guard = tmp_path / "cpp" / "amx_guard.h"
    assert f"-DCMAKE_C_FLAGS=-include {guard}" in options
    assert f"-DCMAKE_CXX_FLAGS=-include {guard}" in options
    assert guard.read_bytes() == (engine.CPP / "amx_guard.h").read_bytes()


def test_what_a_build_needs_is_in_our_own_wheel() -> None:
    """The queen's machine may build from an installed llama_orch."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert '"llama_orch.wheelhouse" = ["cpp/*"]' in text
    assert sorted(path.name for path in engine.CPP.iterdir()) == [
        "amx_guard.h",
        "arc4random.c",
        "hook.cmake",
        "params.c",
    ]


def test_the_binding_is_packed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    for name in ("llama_cpp/__init__.py", "llama_cpp/py.typed", "llama_cpp/server/app.py", "vendor/llama.cpp/LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "llama_cpp" / "notes.md").write_text("not needed")
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9\n")
    (source / "LICENSE.md").write_text("MIT")
    library = tmp_path / "libllama.so"
    library.write_bytes(b"\x7fELF")
    monkeypatch.setattr(engine.sources, "binding", lambda *_: source)
    monkeypatch.setattr(Engine, "_params", lambda _: "{}\n")
    monkeypatch.setattr(Engine, "_compiled", lambda *_: {"llama_cpp/lib/libllama.so": library})

    wheel = Engine(ROOT, tmp_path).wheel(GENERATIONS[:1])

    version = Engine(ROOT, tmp_path).pin.version
    assert wheel.name == f"llama_cpp_python-{version}-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(wheel) as archive:
        info = f"llama_cpp_python-{version}.dist-info"
        assert set(archive.namelist()) == {
            "llama_cpp/__init__.py",
            "llama_cpp/py.typed",
            "llama_cpp/server/app.py",
            "llama_cpp/lib/libllama.so",
            "llama_cpp/lib/params.json",
            f"{info}/METADATA",
            f"{info}/WHEEL",
            f"{info}/RECORD",
            f"{info}/licenses/source/LICENSE.md",
            f"{info}/licenses/llama.cpp/LICENSE",
        }
        assert archive.getinfo("llama_cpp/lib/libllama.so").external_attr >> 16 == 0o755
        assert archive.read(f"{info}/METADATA") == (source / "PKG-INFO").read_bytes()
