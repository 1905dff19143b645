"""A worker whose engine was taken over by its model: what it can reach then."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llama_orch.base.tokens import Token
from llama_orch.contract.process import SPEC_FILE
from llama_orch.demo_model import write_demo_model
from llama_orch.hive import stop_workers
from llama_orch.hive.shim import LAUNCH_FILE
from llama_orch.hive.workers import launch
from llama_orch.web import landlock
from tests.support.hives import ROOT
from tests.support.ports import free_port

HOSTILE = Path(__file__).with_name("hostile_engine.py")
SECONDS = 60.0
MAY = {
    "read the model",
    "map the model",
    "write its temporary folder",
    "read the order",
    "import a module",
    "count the processors",
    "read its own state",
    "draw randomness",
    "start a thread",
    "signal itself",
}
# What a kernel can refuse only since this version of the ABI.
SINCE = {
    "cut the model off": 3,
    "cut a secret off": 3,
    "connect": 4,
    "listen": 4,
    "connect to an abstract socket": 6,
    "signal the parent": 6,
    "signal the agent": 6,
}
# What it could do to anybody who runs as the same user, and did.
COULD = {
    "read a secret",
    "read another model",
    "read another worker's order",
    "list the workers",
    "write its record",
    "cut a secret off",
    "write beside the model",
    "run a program",
    "connect",
    "listen",
    "signal the agent",
    "connect to an abstract socket",
}


async def reached(folder: Path, monkeypatch: pytest.MonkeyPatch, *, confined: bool) -> dict[str, str]:
    """What came of each try of a worker that is started as the hive starts it."""
    state, models, evil = folder / "state", folder / "models", folder / "evil"
    own, other = state / "workers" / "w1", state / "workers" / "w2"
    for one in (own, other, models, evil / "llama_cpp"):
        one.mkdir(parents=True)
    for path in (folder / "secret", own / "record.json", other / SPEC_FILE):
        path.write_text("{}")
    model = write_demo_model(models / "model.gguf")
    (models / "other.gguf").write_bytes(b"GGUF")
    (evil / "llama_cpp" / "__init__.py").write_bytes(HOSTILE.read_bytes())
    order = {"worker_id": "w1", "model_path": str(model), "model_name": "m", "host": "127.0.0.1", "port": free_port()}
    (own / SPEC_FILE).write_text(json.dumps({**order, "backend": "cpu", "threads": 1, "confined": confined}))
    monkeypatch.setenv("PYTHONPATH", f"{evil}:{ROOT / 'agent'}")
    abstract = f"\0hostile-{os.getpid()}-{folder.name}"
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket(socket.AF_UNIX) as hidden:
        hidden.bind(abstract)
        hidden.listen()
        plan = {
            "model": str(model),
            "other_model": str(models / "other.gguf"),
            "state": str(state),
            "secret": str(folder / "secret"),
            "agent": os.getpid(),
            "port": there.getsockname()[1],
            "free_port": free_port(),
            "abstract": abstract,
        }
        (evil / "llama_cpp" / "plan.json").write_text(json.dumps(plan))
        (own / LAUNCH_FILE).write_text("this")
        shim = launch.start_shim(own, "this", folder / "worker.log", Token("a-token-of-the-tests-here"))
        try:
            found = own / "tmp" / "found.json"
            until = time.monotonic() + SECONDS
            while not found.exists():
                assert time.monotonic() < until, (folder / "worker.log").read_text()
                await asyncio.sleep(0.05)
            return json.loads(found.read_bytes())
        finally:
            await stop_workers.stop_all(state, drain_s=0, term_s=5)
            shim.wait(30)


async def test_it_reaches_its_model_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not (version := landlock.abi()):
        pytest.skip("the kernel has no Landlock")
    found = await reached(tmp_path, monkeypatch, confined=True)
    done = {name for name, outcome in found.items() if outcome == "done"}
    later = {name for name, since in SINCE.items() if version < since}
    assert done - later == MAY
    others = {outcome for name, outcome in found.items() if name not in done | later}
    assert others <= {"EACCES", "EPERM", "EXDEV"}
    assert "confined by Landlock" in (tmp_path / "worker.log").read_text()


async def test_it_reached_all_of_this_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = await reached(tmp_path, monkeypatch, confined=False)
    assert {name for name in COULD if found[name] != "done"} == set()


THREADS = """
import sys, threading
from pathlib import Path
from llama_orch.contract.process import WorkerSpec
from llama_orch.web import landlock
from llama_orch.worker import confinement
backend = sys.argv[1]
spec = WorkerSpec(
    worker_id="w", model_path="/nonexistent/m.gguf", model_name="m", host="127.0.0.1", port=1, backend=backend
)
landlock.restrict(confinement.allowed(spec, Path("/nonexistent")), landlock.abi())
done = threading.Event()
thread = threading.Thread(target=done.wait)
thread.start()
try:
    with open(f"/proc/self/task/{thread.native_id}/comm", "w") as file:
        file.write("cuda-EvtHandlr")
    print("named")
except OSError as error:
    print(error.strerror)
finally:
    done.set()
"""


@pytest.mark.parametrize(("backend", "said"), [("cuda", "named"), ("cpu", "Permission denied")])
def test_a_worker_on_a_gpu_may_name_its_threads(backend: str, said: str):
    # CUDA does that when it starts, and fails with CUDA_ERROR_OPERATING_SYSTEM where it cannot.
    if not landlock.abi():
        pytest.skip("the kernel has no Landlock")
    done = subprocess.run(
        [sys.executable, "-c", THREADS, backend], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == said
