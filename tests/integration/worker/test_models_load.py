"""The model files that tests make, in llama.cpp itself: every other test's expected text rests on this."""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import pytest

from llama_orch.demo_model import DEMO_SENTENCE, expected_completion, write_demo_model
from tests.support.gguf.models import not_a_gguf, slow_model, split_model, truncated_model


@pytest.fixture(scope="module", autouse=True)
def _backends() -> None:
    found = importlib.util.find_spec("llama_cpp")
    assert found is not None and found.origin is not None
    libraries = Path(found.origin).parent / "lib"
    # libllama.so is linked to this very file; backends loaded into the copy named libggml.so crash the process.
    ggml = ctypes.CDLL(str(libraries / "libggml.so.0"))
    ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load_all_from_path.restype = None
    ggml.ggml_backend_load_all_from_path(str(libraries).encode())


def load(path: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)


def complete(model: llama_cpp.Llama, prompt: str, count: int) -> str:
    answer = model.create_completion(prompt, max_tokens=count, temperature=0)
    assert isinstance(answer, dict)
    return answer["choices"][0]["text"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> llama_cpp.Llama:
    return load(write_demo_model(tmp_path_factory.mktemp("models") / "demo.gguf"))


@pytest.mark.parametrize("prompt", ["A", "the letter Z", "7", "some text.", "a line\n", "caf\u00e9"])
def test_completion_is_as_expected(demo: llama_cpp.Llama, prompt: str) -> None:
    assert complete(demo, prompt, 12) == expected_completion(prompt[-1], 12)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_chat_is_the_sentence_whatever_the_sampling(demo: llama_cpp.Llama, temperature: float) -> None:
    answer = demo.create_chat_completion(
        [{"role": "system", "content": "Count to A"}, {"role": "user", "content": "What is in a name?"}],
        temperature=temperature,
        repeat_penalty=1.3,
        max_tokens=100,
    )
    assert isinstance(answer, dict)
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (DEMO_SENTENCE, "stop")


def test_split_model_loads_by_its_first_part(tmp_path: Path) -> None:
    first, _ = split_model(tmp_path)
    assert complete(load(first), "A", 12) == "BCDEFGHIJKLM"


def test_slow_model_is_slow(tmp_path: Path) -> None:
    model = load(slow_model(tmp_path / "slow.gguf", blocks=1))
    started = time.monotonic()
    assert complete(model, "A", 20) == expected_completion("A", 20)
    assert time.monotonic() - started > 0.05


@pytest.mark.parametrize("make", [truncated_model, not_a_gguf])
def test_broken_models_do_not_load(make: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Failed to load model"):
        load(make(tmp_path / "broken.gguf"))
