from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.testing import assert_array_equal

from llama_orch.contract.devices import LibraryResult
from llama_orch.worker import self_test, self_test_model

R = LibraryResult
CLOSED = (
    "import sys\n"
    "closed = '--confined' in sys.argv\n"
    "print('CUDA shows no GPU' if closed else 'Q4_0 on 1 GPU'); raise SystemExit(4 if closed else 0)\n"
)


@pytest.mark.parametrize(
    ("code", "result", "reason"),
    [
        ("print('noise'); print('Q4_0')", R.PASSED, "Q4_0"),
        ("print('2 of 67 are wrong'); raise SystemExit(3)", R.WRONG, "2 of 67 are wrong"),
        ("print('no memory'); raise SystemExit(4)", R.NOT_TESTED, "no memory"),
        ("raise SystemExit(1)", R.DIED, "exited with code 1"),
        ("import os; os.kill(os.getpid(), 4)", R.DIED, "ended by signal 4 (SIGILL)"),
        ("import os; os.kill(os.getpid(), 11)", R.DIED, "ended by signal 11 (SIGSEGV)"),
        # The kernel, for want of memory, or an operator: that says nothing of the library.
        ("import os; os.kill(os.getpid(), 9)", R.NOT_TESTED, "ended by SIGKILL"),
        ("import time; time.sleep(600)", R.HUNG, "no answer within 1 s"),
    ],
)
def test_how_a_library_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, result: LibraryResult, reason: str
) -> None:
    # A real process of this Python, told to behave so.
    (tmp_path / "child_of_a_test.py").write_text(code)
    monkeypatch.setattr(self_test, "CHILD", "child_of_a_test")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(self_test, "CPU_SECONDS", 1.0 if result is R.HUNG else 60.0)
    monkeypatch.setattr(self_test.backends, "cpu_libraries", lambda: [Path("/x/libggml-cpu-haswell.so")])

    (found,) = self_test.cpu()

    assert (found.name, found.backend, found.file) == ("haswell", "cpu", "libggml-cpu-haswell.so")
    assert (found.result, found.reason) == (result, reason)
    assert sys.executable


def test_the_next_is_tried_only_where_one_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child_of_a_test.py").write_text("import sys; raise SystemExit(3 if 'haswell' in sys.argv[1] else 0)")
    monkeypatch.setattr(self_test, "CHILD", "child_of_a_test")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = [Path(f"libggml-cpu-{name}.so") for name in ("haswell", "sandybridge", "sse42")]
    monkeypatch.setattr(self_test.backends, "cpu_libraries", lambda: names)

    assert [(one.name, one.result) for one in self_test.cpu()] == [("haswell", R.WRONG), ("sandybridge", R.PASSED)]


@pytest.mark.parametrize(
    ("confined", "code", "result", "reason"),
    [
        (True, "print('Q4_0 on 1 GPU')", R.PASSED, "Q4_0 on 1 GPU"),
        (True, CLOSED, R.WRONG, "not within what is left to a confined worker: not_tested, CUDA shows no GPU"),
        (False, CLOSED, R.PASSED, "Q4_0 on 1 GPU"),
    ],
)
def test_a_driver_that_needs_what_is_closed_to_workers_is_found_out(  # noqa: PLR0917
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confined: bool, code: str, result: LibraryResult, reason: str
) -> None:
    (tmp_path / "child_of_a_test.py").write_text(code)
    monkeypatch.setattr(self_test, "CHILD", "child_of_a_test")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(self_test.backends, "cuda_libraries", lambda: [Path("/x/libggml-cuda.so")])

    (found,) = self_test.cuda(Path("/x/libggml-cpu-haswell.so"), confined=confined)

    assert (found.name, found.result) == ("cuda", result)
    assert found.reason and found.reason.endswith(reason)


@pytest.mark.parametrize("kind", self_test_model.FORMATS)
def test_each_format_holds_the_same_numbers(tmp_path: Path, kind: str) -> None:
    self_test_model.write(tmp_path / "one.gguf", kind)
    self_test_model.write(tmp_path / "other.gguf", "Q8_0")

    ours, others = (
        {tensor.name: tensor for tensor in GGUFReader(tmp_path / name).tensors} for name in ("one.gguf", "other.gguf")
    )
    for name, tensor in ours.items():
        if name.endswith("norm.weight"):
            continue
        assert tensor.tensor_type.name == kind
        found, expected = (dequantize(one.data, one.tensor_type) for one in (tensor, others[name]))
        assert_array_equal(found, expected)
        assert found.min() < 0 < found.max(), name


def test_every_token_is_followed_by_another_in_one_cycle() -> None:
    after = self_test_model.following()
    token, seen = 0, []
    for _ in range(self_test_model.TOKENS):
        seen.append(token)
        token = int(after[token])

    assert token == 0
    assert sorted(seen) == list(range(self_test_model.TOKENS))
