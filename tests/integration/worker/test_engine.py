"""The engine and the llama.cpp beneath it, in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_orch.demo_model import write_demo_model
from tests.support.gguf import sparse_models

LOAD_AND_FORGET = """
import gc, sys
from llama_orch.contract.process import WorkerSpec
from llama_orch.worker.llama import backends
from llama_orch.worker.llama.engine import LlamaEngine

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
from llama_orch.worker.llama.engine import LlamaEngine
from llama_orch.worker.batching.scheduler import Part

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
from llama_orch.worker.llama import backends, engine
from llama_orch.worker.llama.binding import llama_cpp
from llama_orch.worker.batching.scheduler import Part

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


WARM_UP = """
import ctypes, json, os, sys
from llama_orch.contract.process import WorkerSpec
from llama_orch.worker.llama import warm_up
from llama_orch.worker.llama.binding import llama_cpp
from llama_orch.worker.llama.engine import LlamaEngine
from llama_orch.worker.batching.scheduler import Part

path, slots, context, warm_up.MOST_SECONDS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
decode, batches, codes = llama_cpp.llama_decode, [], []

def note(of, batch):
    tokens = [batch.token[n] for n in range(batch.n_tokens)]
    sequences = [batch.seq_id[n][0] for n in range(batch.n_tokens)]
    batches.append([len(tokens), len(set(tokens)), len(set(sequences))])
    codes.append(decode(of, batch))
    return codes[-1]

llama_cpp.llama_decode = note
engine = LlamaEngine(WorkerSpec(
    worker_id="tested", model_path=path, model_name="m", host="127.0.0.1", port=1, backend="cpu", slots=slots,
    ctx_per_slot=context,
), threads=2)
info = engine.load(lambda _: True)
batches, warm = [], batches
held = [llama_cpp.llama_memory_seq_pos_max(engine._memory, n) for n in range(slots)] if engine._memory else []
if info.embedding_length:
    engine.embed([[5, 6, 7]])
else:
    engine.decode([Part(n, [5 + n], 0, "last") for n in range(slots)])
print(json.dumps([warm, sorted(set(held)), sorted(set(codes))]))
os._exit(0)
"""


@pytest.mark.parametrize(
    ("make", "slots", "context", "batch"),
    [
        (write_demo_model, 1, 512, [512, 379, 1]),
        (write_demo_model, 8, 64, [512, 379, 8]),
        (write_demo_model, 1, 128, [128, 128, 1]),
        (sparse_models.llama, 2, 2048, [512, 512, 1]),
        (sparse_models.gemma3, 3, 300, [512, 512, 2]),
        (sparse_models.qwen3moe, 1, 1024, [512, 512, 1]),
        # Several slots: llama.cpp's AMX kernels read beside the weights of such models (`wheelhouse/corrections.py`).
        (sparse_models.mamba, 3, 300, [512, 512, 2]),
        (sparse_models.jamba, 2, 1024, [512, 512, 1]),
        (sparse_models.lfm2, 3, 1024, [512, 512, 1]),
        (sparse_models.qwen35, 3, 300, [512, 512, 2]),
    ],
)
def test_the_warm_up_reads_a_full_step_and_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], Path], slots: int, context: int, batch: list[int]
):
    warm, held, codes = warm_up(make(tmp_path / "model.gguf"), slots, context, most_seconds=1e9)
    assert warm == [[1, 1, 1], [1, 1, 1], batch, [slots, slots, slots]]
    assert held == [-1] and codes == [0]


def test_a_model_for_vectors_reads_no_more_than_it_has_positions_for(tmp_path: Path):
    model = sparse_models.bert(tmp_path / "model.gguf", context_length=128)
    warm, held, codes = warm_up(model, 2, 512, most_seconds=1e9)
    assert warm == [[1, 1, 1], [1, 1, 1], [128, 128, 1]]
    assert held == [] and codes == [0]


def test_the_warm_up_of_a_slow_model_is_shorter(tmp_path: Path):
    warm, _, _ = warm_up(write_demo_model(tmp_path / "model.gguf"), 80, 64, most_seconds=1e-9)
    assert warm[2:] == [[64, 64, 1], [64, 64, 64]]


def warm_up(model: Path, slots: int, context: int, *, most_seconds: float) -> list[list[list[int]]]:
    """Each batch of the warm-up (its tokens, how many of them differ, sequences), what is held then, decode's codes."""
    arguments = [str(model), str(slots), str(context), str(most_seconds)]
    run = [sys.executable, "-c", WARM_UP, *arguments]
    ended = subprocess.run(run, timeout=120, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


TOGETHER = """
import json, os, sys
import numpy as np
from llama_orch.contract.process import WorkerSpec
from llama_orch.worker.llama.engine import LlamaEngine
from llama_orch.worker.batching.scheduler import Part

engine = LlamaEngine(WorkerSpec(
    worker_id="tested", model_path=sys.argv[1], model_name="m", host="127.0.0.1", port=1, backend="cpu", slots=3,
    ctx_per_slot=128,
), threads=1)
engine.load(lambda _: True)
texts = [[5 + 7 * n + step for step in range(20)] for n in range(3)]

def logits(numbers):
    for n in range(3):
        engine.keep(n, 0)
    engine.decode([Part(n, texts[n], 0, "last") for n in numbers])
    found = [engine.logits(row).astype(float) for row in range(len(numbers))]
    # One token each reads the weights by other kernels than many do.
    engine.decode([Part(n, [900 + n], len(texts[n]), "last") for n in numbers])
    return found + [engine.logits(row).astype(float) for row in range(len(numbers))]

together = logits([0, 1, 2])
alone = [logits([n]) for n in range(3)]
pairs = [(together[n + 3 * step], alone[n][step]) for n in range(3) for step in range(2)]
print(json.dumps([float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs]))
os._exit(0)
"""


@pytest.mark.parametrize(
    "make", [sparse_models.llama, sparse_models.mamba, sparse_models.jamba, sparse_models.lfm2, sparse_models.qwen35]
)
def test_several_sequences_at_once_are_computed_as_each_alone(tmp_path: Path, make: Callable[[Path], Path]):
    """llama.cpp's AMX kernels mixed up the sequences of recurrent and hybrid models (`wheelhouse/corrections.py`)."""
    run = [sys.executable, "-c", TOGETHER, str(sparse_models.filled(make(tmp_path / "model.gguf")))]
    ended = subprocess.run(run, timeout=120, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert max(json.loads(ended.stdout)) < 0.05
