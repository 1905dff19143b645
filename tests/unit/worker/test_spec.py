from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llama_orch.contract.process import WorkerSpec
from llama_orch.worker.spec import WrongOrder, read_spec, read_token, threads_for

TOKEN = "a-token-of-enough-length"


def a_spec(**changes: Any) -> dict[str, Any]:
    return {
        "worker_id": "w1",
        "model_path": "/models/demo.gguf",
        "model_name": "demo",
        "host": "127.0.0.1",
        "port": 8100,
        "backend": "cpu",
        **changes,
    }


def write(folder: Path, content: object) -> Path:
    path = folder / "spec.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_spec_has_defaults(tmp_path: Path):
    spec = read_spec(write(tmp_path, a_spec()))
    assert (spec.devices, spec.slots, spec.ctx_per_slot, spec.threads, spec.gpu_layers) == ([0], 1, None, None, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"port": 0}, "port"),
        ({"port": "8100"}, "port"),
        ({"backend": "rocm"}, "backend"),
        ({"devices": [-1]}, "devices"),
        ({"device_uuids": ["GPU-1,all"]}, "device_uuids"),
        ({"split_mode": "none"}, "split_mode"),
        ({"tensor_split": [-1.0]}, "tensor_split"),
        ({"slots": 0}, "slots"),
        ({"slots": 257}, "slots"),
        ({"ctx_per_slot": 63}, "ctx_per_slot"),
        ({"threads": 0}, "threads"),
        ({"gpu_layers": -2}, "gpu_layers"),
        ({"worker_id": "../x"}, "worker_id"),
        ({"model_path": ""}, "model_path"),
        ({"cpu_library": "../libggml-cpu-x64.so"}, "cpu_library"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_spec_names_the_field(tmp_path: Path, changes: dict[str, Any], field: str):
    with pytest.raises(WrongOrder, match=field):
        read_spec(write(tmp_path, a_spec(**changes)))


def test_a_spec_that_is_missing_or_no_json_says_so(tmp_path: Path):
    with pytest.raises(WrongOrder, match="No such file"):
        read_spec(tmp_path / "spec.json")
    with pytest.raises(WrongOrder, match="JSON"):
        read_spec(write(tmp_path, "{"))


def a_pipe(content: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return reading


def test_a_token_comes_by_pipe_and_the_descriptor_is_closed():
    descriptor = a_pipe(f"{TOKEN}\n".encode())
    assert read_token(descriptor).matches(TOKEN)
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_tokens_in_lines_behind_the_first_are_taken_too():
    token = read_token(a_pipe(f"{TOKEN}\nanother-token-of-the-fleet\n".encode()))
    assert token.matches(TOKEN) and token.matches("another-token-of-the-fleet")
    assert not token.matches(f"{TOKEN}\nanother-token-of-the-fleet")
    assert token.reveal() == TOKEN
    with pytest.raises(WrongOrder):
        read_token(a_pipe(f"{TOKEN}\nshort".encode()))


def test_a_token_comes_by_memory_file_wherever_its_writer_left_off():
    descriptor = os.memfd_create("token")
    os.write(descriptor, TOKEN.encode())
    assert read_token(descriptor).matches(TOKEN)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"with spaces in the middle", b"\xff" * 20, b"x" * 5000 + b"\n\x00"]
)
def test_a_bad_token_is_refused_and_not_repeated(content: bytes):
    with pytest.raises(WrongOrder) as caught:
        read_token(a_pipe(content))
    assert "spaces in the middle" not in str(caught.value)


def test_a_descriptor_that_is_not_open_is_named():
    descriptor = a_pipe(b"")
    os.close(descriptor)
    with pytest.raises(WrongOrder, match=str(descriptor)):
        read_token(descriptor)


def test_threads_are_the_available_cores_unless_said():
    cores = len(os.sched_getaffinity(0))
    assert threads_for(WorkerSpec.model_validate(a_spec())) == cores
    assert threads_for(WorkerSpec.model_validate(a_spec(threads=1))) == 1
