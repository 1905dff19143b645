"""The three servers that are measured, each as a process that is started, found ready and ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_orch.contract.devices import Backend
from llama_orch.wheelhouse.engine import default_cache
from llama_orch.wheelhouse.engine_lock import engine_for
from llama_orch.wheelhouse.files import locked
from llama_orch.wheelhouse.pip import say
from tests.support.ports import free_port

from .llama_cpp_build import ROOT

OURS, LLAMA_SERVER, LLAMA_CPP_SERVER = "ours", "llama-server", "llama_cpp.server"
SERVERS = (OURS, LLAMA_SERVER, LLAMA_CPP_SERVER)

START_SECONDS = 60.0
STOP_SECONDS = 20.0
INSTALL_SECONDS = 600.0
_TOKEN = "a-token-that-only-the-bench-has"


@dataclass(frozen=True)
class Setup:
    """What the servers need: the model, the context of one slot, threads, and what was built before.

    `python` is None where llama-cpp-python's own server is not measured.
    """

    model: Path
    context: int
    threads: int
    programs: Path
    python: Path | None
    folder: Path
    backend: Backend = "cpu"


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    pid: int
    url: str
    headers: dict[str, str] = field(default_factory=dict[str, str])
    extra: dict[str, Any] = field(default_factory=dict[str, Any])


@contextmanager
def serving(name: str, slots: int, setup: Setup) -> Iterator[Running]:
    """Run the server until the block ends, warmed up by one answer. Raises RuntimeError when it does not come up."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    folder = setup.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    descriptors: list[int] = []
    headers: dict[str, str] = {}
    extra: dict[str, Any] = {}
    if name == OURS:
        command = _ours(setup, slots, port, folder, descriptors)
        headers = {"Authorization": f"Bearer {_TOKEN}"}
    elif name == LLAMA_SERVER:
        command = _llama_server(setup, slots, port)
    else:
        command = _llama_cpp_server(setup, port)
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=_alone() if name == LLAMA_CPP_SERVER else None,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    try:
        running = Running(process.pid, url, headers, extra)
        _warm_up(running, process, log)
        yield running
    finally:
        _end(process)


def _ours(setup: Setup, slots: int, port: int, folder: Path, descriptors: list[int]) -> list[str]:
    spec = {
        "worker_id": "bench",
        "model_path": str(setup.model),
        "model_name": "bench",
        "host": "127.0.0.1",
        "port": port,
        "backend": setup.backend,
        "slots": slots,
        "ctx_per_slot": setup.context,
        "threads": setup.threads,
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    reading, writing = os.pipe()
    descriptors.append(reading)
    os.write(writing, _TOKEN.encode())
    os.close(writing)
    return [sys.executable, "-m", "llama_orch.worker", "--spec", str(path), "--token-fd", str(reading)]


def _llama_server(setup: Setup, slots: int, port: int) -> list[str]:
    context = {"--parallel": slots, "--ctx-size": slots * setup.context}
    options = {"--model": setup.model, "--host": "127.0.0.1", "--port": port, "--threads": setup.threads, **context}
    options["--n-gpu-layers"] = 999 if setup.backend == "cuda" else 0
    return [str(setup.programs / "llama-server"), *(str(part) for pair in options.items() for part in pair)]


def _llama_cpp_server(setup: Setup, port: int) -> list[str]:
    if setup.python is None:
        raise RuntimeError("llama_cpp.server is measured on the processor alone: its wheel has no CUDA")
    options = {
        "--model": setup.model,
        "--model_alias": "bench",
        "--host": "127.0.0.1",
        "--port": port,
        "--n_ctx": setup.context,
        "--n_threads": setup.threads,
        "--n_threads_batch": setup.threads,
        # By default it breaks off an answer when the next request comes.
        "--interrupt_requests": "false",
        "--verbose": "false",
    }
    script = Path(__file__).with_name("serve_llama_cpp.py")
    return [str(setup.python), str(script), *(str(part) for pair in options.items() for part in pair)]


def _alone() -> dict[str, str]:
    """Our environment without what makes a Python find packages that are not its own."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _warm_up(running: Running, process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask until the first answer has come: only then has the model been read and every buffer been touched."""
    body = json.dumps({"model": "bench", "prompt": "Zz" * 64, "max_tokens": 8, "temperature": 0}).encode()
    headers = {"Content-Type": "application/json", **running.headers}
    request = urllib.request.Request(f"{running.url}/v1/completions", body, headers)
    deadline = time.monotonic() + START_SECONDS
    problem = "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {_tail(log)}")
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            problem = f"{error.code}: {error.read()[:300]!r}"
            if error.code != 503:
                break
        except OSError as error:
            problem = str(error)
        else:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not come up ({problem}): {_tail(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        say(f"{process.args[0]!r} had to be killed")  # pyright: ignore[reportIndexIssue, reportArgumentType]
    finally:
        # What it may have started is in its group, and goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]


def llama_cpp_python(cache: Path) -> Path:
    """The Python of an environment with our wheel of llama-cpp-python and what its server needs."""
    wheel = engine_for(ROOT, default_cache()).wheel()
    key = hashlib.sha256(f"{wheel}\0{sys.version}".encode()).hexdigest()[:16]
    folder = cache / f"llama_cpp.server-{key}"
    done = folder / "complete"
    with locked(folder.with_name(folder.name + ".lock"), "another installation of llama_cpp.server"):
        if not done.is_file():
            say("installing llama_cpp.server into an environment of its own")
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            environment = _alone()
            subprocess.run([*command, f"{wheel}[server]"], check=True, timeout=INSTALL_SECONDS, env=environment)
            done.touch()
    return folder / "bin" / "python"
