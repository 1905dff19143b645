"""What a user gives `make` in a variable reaches the program word for word: make itself is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Stands in the place of a program and writes down what it was given; the Makefile's own Python runs as it is.
TELLS = """#!{python}
import json, os, sys
if sys.argv[1] == "-I":
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with open({told!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
sys.exit({status})
"""
COMMANDS = {
    "up": ("UP_FLAGS", ["llama-orch", "up"]),
    "fleet": ("FLEET_FLAGS", ["python", "-m", "tests.hosts.fleet"]),
    "test-unit": ("PYTEST_FLAGS", ["pytest", "tests/unit"]),
    "test-integration": ("PYTEST_FLAGS", ["pytest", "tests/integration"]),
    "test-hosts": ("PYTEST_FLAGS", ["pytest", "tests/hosts"]),
    "faults": ("FAULTS_FLAGS", ["python", "-m", "tests.faults"]),
    "bench-worker": ("BENCH_FLAGS", ["python", "-m", "tests.bench.worker"]),
    "wheelhouse-cuda": ("CUDA_FLAGS", ["python", "-m", "llama_orch.wheelhouse", "build-cuda"]),
}


def make(
    folder: Path, goal: str, *, status: int = 0, command_line: str = "", **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Run a goal in the checkout with an environment in `folder`; also what its programs were given."""
    programs, told = folder / "bin", folder / "told"
    programs.mkdir()
    text = TELLS.format(python=sys.executable, told=str(told), status=status)
    for name in ("python", "llama-orch", "pytest"):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    # As if it were set up: nothing that it is made from is newer.
    stamps = [folder / ".runtime", folder / ".dev"]
    for stamp in stamps:
        stamp.touch()
    old = [f"--old-file={name}" for name in ("host-packages", "wheelhouse-hosts", programs / "python", *stamps)]
    done = subprocess.run(
        ["make", *old, f"VENV={folder}", goal, *([command_line] if command_line else [])],
        cwd=ROOT,
        # Whoever runs the tests by make has handed down variables of its own.
        env={**{name: value for name, value in os.environ.items() if "MAKE" not in name and name != "PYTEST_FLAGS"},
             "PATH": f"{programs}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    return done, [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


@pytest.mark.parametrize("goal", COMMANDS)
def test_words_arrive_as_they_were_given(tmp_path: Path, goal: str) -> None:
    variable, command = COMMANDS[goal]
    hurt = tmp_path / "hurt"
    given = f"--list 86-real;89-real -k 'one or two' \"it's\" a$b$(touch {hurt}) `touch {hurt}` * #no >{hurt}"

    done, told = make(tmp_path, goal, command_line=f"{variable}={given}")

    assert done.returncode == 0, done.stderr
    assert told == [
        [*command, "--list", "86-real;89-real", "-k", "one or two", "it's", "a$b$(touch", f"{hurt})", "`touch",
         f"{hurt}`", "*", "#no", f">{hurt}"]
    ]  # fmt: skip
    assert not hurt.exists()


def test_the_environment_does_as_well_and_lines_are_words(tmp_path: Path) -> None:
    done, told = make(tmp_path, "wheelhouse-cuda", CUDA_FLAGS="--architectures\n86-real;89-real\n")

    assert told == [[*COMMANDS["wheelhouse-cuda"][1], "--architectures", "86-real;89-real"]], done.stderr


def test_without_flags_there_are_no_words(tmp_path: Path) -> None:
    assert make(tmp_path, "bench-worker")[1] == [COMMANDS["bench-worker"][1]]


def test_the_programs_exit_status_is_makes(tmp_path: Path) -> None:
    done, told = make(tmp_path, "up", status=3)

    assert (done.returncode, len(told)) == (2, 1)
    assert "Error 3" in done.stderr


def test_a_quote_that_is_not_closed_names_the_variable(tmp_path: Path) -> None:
    done, told = make(tmp_path, "up", command_line="UP_FLAGS=--model 'x")

    assert (done.returncode, told) == (2, [])
    assert "UP_FLAGS=--model 'x: No closing quotation" in done.stderr
