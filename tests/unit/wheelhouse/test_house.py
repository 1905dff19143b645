from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from llama_orch.wheelhouse import content
from llama_orch.wheelhouse.engine import Engine
from llama_orch.wheelhouse.files import point
from llama_orch.wheelhouse.house import House, Project
from llama_orch.wheelhouse.locks import Target
from llama_orch.wheelhouse.native import needed_versions
from llama_orch.wheelhouse.processors import GENERATIONS

ROOT = Path(__file__).parents[3]
DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "checkout"
    (root / "agent" / "llama_orch").mkdir(parents=True)
    (root / "agent" / "requirements").mkdir()
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "agent" / "llama_orch" / "__init__.py").write_text("")
    for part in ("hive", "queen", "pip"):
        (root / "agent" / "requirements" / f"{part}.txt").write_text(f"llama-cpp-python==1 --hash={DIGEST}\n")
    tools = f"cmake==1 --hash={DIGEST}\nninja==1 --hash={DIGEST}\n"
    (root / "agent" / "requirements" / "build.txt").write_text(tools)
    return Project(root)


def made(project: Project, out: Path, part: str = "hive", python: str = "3.11") -> House:
    return House(project, part, Target(python), out, out / "cache")


def test_the_key_follows_the_sources_and_nothing_else(project: Project, tmp_path: Path) -> None:
    before = made(project, tmp_path).key()
    source = project.root / "agent" / "llama_orch" / "__init__.py"
    os.utime(source, (1, 1))
    cached = project.root / "agent" / "llama_orch" / "__pycache__"
    cached.mkdir()
    (cached / "__init__.pyc").write_bytes(b"x")
    assert made(project, tmp_path / "elsewhere").key() == before

    source.write_text("changed = True\n")
    assert made(project, tmp_path).key() != before


def test_each_part_and_target_has_a_key_of_its_own(project: Project, tmp_path: Path) -> None:
    houses = [made(project, tmp_path, part, python) for part in ("hive", "queen") for python in ("3.11", "3.13")]

    assert len({one.key() for one in houses}) == 4
    assert houses[0].content().folder().name.endswith("-py3.11-x86_64")
    assert houses[3].content().pointer().name == "queen-py3.13-x86_64"


def test_what_is_there_is_not_built_again_and_pointed_to(project: Project, tmp_path: Path) -> None:
    one = made(project, tmp_path / "out").content()
    one.folder().mkdir(parents=True)
    (one.folder() / "manifest.json").write_text("{}")

    assert one.build() == one.folder()
    assert one.pointer().readlink() == Path(one.folder().name)


def test_replaced_folders_go_once_no_run_can_still_push_them(project: Project, tmp_path: Path) -> None:
    one = made(project, tmp_path / "out").content()
    for name in (one.folder().name, "fresh-py3.11-x86_64", "stale-py3.11-x86_64"):
        (one.out / name).mkdir(parents=True)
        (one.out / name / "manifest.json").write_text("{}")
    long_ago = time.time() - content.KEEP_REPLACED_S - 60
    os.utime(one.out / "stale-py3.11-x86_64", (long_ago, long_ago))

    one.build()

    assert sorted(p.name for p in one.out.iterdir() if p.is_dir() and not p.is_symlink()) == sorted(
        [one.folder().name, "fresh-py3.11-x86_64"]
    )


def test_a_folder_that_was_in_use_until_now_stays_for_those_who_push_it(project: Project, tmp_path: Path) -> None:
    one = made(project, tmp_path / "out").content()
    old = one.out / "old-py3.11-x86_64"
    long_ago = time.time() - content.KEEP_REPLACED_S - 60
    for folder in (old, one.folder()):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    point(one.pointer(), old.name)
    os.utime(old, (long_ago, long_ago))

    one.build()
    assert one.pointer().readlink() == Path(one.folder().name) and old.is_dir()

    os.utime(old, (long_ago, long_ago))
    one.build()
    assert not old.exists()


def test_a_pointer_to_what_is_gone_is_mended(project: Project, tmp_path: Path) -> None:
    one = made(project, tmp_path / "out").content()
    one.folder().mkdir(parents=True)
    (one.folder() / "manifest.json").write_text("{}")
    point(one.pointer(), "gone-py3.11-x86_64")

    one.build()
    assert one.pointer().readlink() == Path(one.folder().name)


def test_a_pointer_switches_to_another_folder(tmp_path: Path) -> None:
    point(tmp_path / "link", "one")
    point(tmp_path / "link", "two")

    assert (tmp_path / "link").readlink() == Path("two")
    assert [p.name for p in tmp_path.iterdir()] == ["link"]


def test_requirements_name_all_wheels_but_pips(tmp_path: Path) -> None:
    text = content.requirements({"llama_orch-0.1.0-py3-none-any.whl": "aa", "pip-26.3-py3-none-any.whl": "bb"})

    assert text == "llama-orch==0.1.0 --hash=sha256:aa\n"


def test_the_archive_has_the_same_bytes_whoever_made_it(tmp_path: Path) -> None:
    archives = []
    for folder, stamp in ((tmp_path / "a", 1), (tmp_path / "b", 2)):
        folder.mkdir()
        (folder / "x.whl").write_text("wheel")
        os.utime(folder / "x.whl", (stamp, stamp))
        content.write_tar(folder, ["x.whl"])
        archives.append((folder / "wheels.tar").read_bytes())

    assert archives[0] == archives[1]
    with tarfile.open(fileobj=io.BytesIO(archives[0])) as archive:
        assert archive.getnames() == ["x.whl"]


def test_the_highest_symbol_version_counts(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.whl", "w") as wheel:
        wheel.writestr("lib/a.so", b"\x7fELF\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_2.4\0GLIBCXX_3.4.9\0GLIBCXX_3.4.30\0")
        wheel.writestr("lib/not-a-library.so", b"GLIBC_2.99\0")
        wheel.writestr("README", b"\x7fELF\0GLIBC_2.98\0")

    assert needed_versions([tmp_path / "one.whl"]) == ("2.34", "3.4.30")
    assert needed_versions([]) == ("0.0", "0.0.0")


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # -S: no site-packages, as before anything is installed.
    return subprocess.run(
        [sys.executable, "-S", "-m", "llama_orch.wheelhouse", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "agent"), "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_engine_needs_the_standard_library_alone(tmp_path: Path) -> None:
    cache = tmp_path / "llama-orch"
    every = "-".join(one.name for one in GENERATIONS)
    kept = cache / "engine" / Engine(ROOT, cache).key / every / "llama_cpp_python-1-py3-none-linux_x86_64.whl"
    kept.parent.mkdir(parents=True)
    kept.touch()

    done = command("engine", XDG_CACHE_HOME=str(tmp_path))

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(kept), "")


def test_a_missing_wheelhouse_names_the_command(tmp_path: Path) -> None:
    done = command("path", "--python", "3.11", "--out", str(tmp_path))

    assert done.returncode == 1
    assert "make wheelhouse" in done.stderr and done.stdout == ""


def test_outside_a_checkout_the_message_says_so(tmp_path: Path) -> None:
    done = command("build", "--project", str(tmp_path), "--cache", str(tmp_path))

    assert done.returncode == 1
    assert "make lock" in done.stderr or "not a checkout" in done.stderr
