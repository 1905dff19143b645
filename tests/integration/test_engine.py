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


SPLIT = """
import json, os, sys
from llama_orch.contract.process import WorkerSpec
from llama_orch.worker import backends, engine
from llama_orch.worker.binding import llama_cpp
from llama_orch.worker.scheduler import Part

# llama.cpp takes the same device twice, as if it were two.
cpu = next(device for device in backends.load() if device.name == "CPU")
backends.choose = lambda devices, backend, asked, said: [cpu for _ in asked]
load, given = llama_cpp.llama_model_load_from_file, []

def note(path, parameters):
    given.append([parameters.split_mode, parameters.tensor_split[:3] if parameters.tensor_split else None])
    return load(path, parameters)

llama_cpp.llama_model_load_from_file = note

def answer(**more):
    one = engine.LlamaEngine(WorkerSpec(
        worker_id="tested", model_path=sys.argv[1], model_name="m", host="127.0.0.1", port=1, backend="cuda", slots=1,
        **more,
    ), threads=1)
    one.load(lambda _: True)
    one.decode([Part(0, one.tokenize("abc"), 0, "last")])
    return one.logits(0).tolist()

alone = answer()
split = answer(devices=[1, 0], device_uuids=["GPU-b", "GPU-a"], split_mode="layer", tensor_split=[0.75, 0.25])
print(json.dumps([given, alone == split, os.environ["CUDA_VISIBLE_DEVICES"]]))
os._exit(0)
"""


def test_a_model_is_split_over_devices_as_the_spec_says(tmp_path: Path):
    model = write_demo_model(tmp_path / "demo.gguf")
    ended = subprocess.run([sys.executable, "-c", SPLIT, str(model)], timeout=120, check=True, capture_output=True)
    given, same, visible = json.loads(ended.stdout)
    assert given == [[0, None], [1, [0.75, 0.25, 0.0]]]
    assert same
    assert visible == "GPU-b,GPU-a"
