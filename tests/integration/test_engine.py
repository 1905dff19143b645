"""The engine and the llama.cpp beneath it, in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from llama_orch.demo_model import write_demo_model

LOAD_AND_FORGET = """
import gc, sys
from llama_orch.contract.process import WorkerSpec
from llama_orch.worker import backends
from llama_orch.worker.engine import LlamaEngine

def load_and_forget():
    LlamaEngine(WorkerSpec(
        worker_id="tested", model_path=sys.argv[1], model_name="m", host="127.0.0.1", port=1, backend="cpu", slots=1,
    ), threads=1).load(lambda _: True)

load_and_forget()
gc.collect()
backends.load()
"""


def test_llama_cpp_may_log_after_the_engine_is_gone(tmp_path: Path):
    model = write_demo_model(tmp_path / "demo.gguf")
    ended = subprocess.run([sys.executable, "-c", LOAD_AND_FORGET, str(model)], timeout=120, check=False)
    assert ended.returncode == 0


COMPUTE = """
import json, os, sys
from llama_orch.contract.process import WorkerSpec
from llama_orch.worker.engine import LlamaEngine
from llama_orch.worker.scheduler import Part

engine = LlamaEngine(WorkerSpec(
    worker_id="tested", model_path=sys.argv[1], model_name="m", host="127.0.0.1", port=1, backend="cpu", slots=1,
), threads=3)
engine.load(lambda _: True)
before = sorted(os.listdir("/proc/self/task"))
for position in range(20):
    engine.decode([Part(0, [65], position, "last")])
print(json.dumps([before, sorted(os.listdir("/proc/self/task"))]))
os._exit(0)
"""


def test_threads_are_kept_from_step_to_step(tmp_path: Path):
    model = write_demo_model(tmp_path / "demo.gguf")
    ended = subprocess.run([sys.executable, "-c", COMPUTE, str(model)], timeout=120, check=True, capture_output=True)
    before, after = json.loads(ended.stdout)
    assert before == after and len(after) >= 3
