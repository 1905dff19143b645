from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_orch.worker.generation import CannotServe
from llama_orch.worker.llama import backends, model_file
from llama_orch.worker.llama.backends import Device
from llama_orch.worker.llama.log import LlamaLog

CPU = Device(1, "CPU", "CPU", is_gpu=False)
GPU = Device(2, "CUDA0", "CUDA", is_gpu=True)
OTHER_GPU = Device(3, "Vulkan0", "Vulkan", is_gpu=True)


def test_the_cpu_offloads_to_no_device_even_where_there_is_one():
    assert backends.choose([GPU, CPU], "cpu", [0]) == []


def test_cuda_gets_as_many_devices_as_were_asked_for():
    second = Device(4, "CUDA1", "CUDA", is_gpu=True)
    assert backends.choose([GPU, CPU], "cuda", [3]) == [GPU]
    assert backends.choose([GPU, second, CPU], "cuda", [3, 1]) == [GPU, second]


def test_a_gpu_that_is_not_there_is_not_made_up_for_by_fewer():
    with pytest.raises(CannotServe, match="CUDA device 3, 1 was asked for"):
        backends.choose([GPU, CPU], "cuda", [3, 1])


@pytest.mark.parametrize("devices", [[CPU], [CPU, OTHER_GPU]])
def test_cuda_never_falls_back(devices: list[Device]):
    with pytest.raises(CannotServe, match="CUDA device 2") as caught:
        backends.choose(devices, "cuda", [2])
    assert caught.value.code == "backend_unavailable"


@pytest.fixture
def cuda_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a real library where a CUDA backend stands, linked to one that may be missing when it is loaded."""
    (tmp_path / "llama_cpp" / "lib").mkdir(parents=True)
    monkeypatch.setattr(backends, "_package_folder", lambda: tmp_path / "llama_cpp")

    def link(name: str, soname: str) -> None:
        flags = ["-shared", "-x", "c", "/dev/null", "-x", "none", f"-Wl,--no-as-needed,-rpath,{tmp_path}"]
        subprocess.run(["cc", *flags, f"-Wl,-soname,{soname}", "-o", tmp_path / soname], check=True, timeout=60)
        subprocess.run(
            ["cc", *flags, tmp_path / soname, "-o", tmp_path / "llama_cpp" / "lib" / name], check=True, timeout=60
        )

    return link


def refusal(said: str = "") -> str:
    with pytest.raises(CannotServe) as caught:
        backends.choose([CPU], "cuda", [0], said)
    assert caught.value.code == "backend_unavailable"
    return caught.value.message


def test_a_missing_cuda_backend_is_said(cuda_backend: Callable[[str, str], None]):
    assert refusal().endswith("; its CUDA backend is not installed")


def test_the_loaders_words_come_through(cuda_backend: Callable[[str, str], None], tmp_path: Path):
    cuda_backend("libggml-cuda.so", "libcuda-of-a-test.so.1")
    (tmp_path / "libcuda-of-a-test.so.1").unlink()

    message = refusal("not what the loader said")

    assert "cannot be loaded: libcuda-of-a-test.so.1: cannot open shared object file" in message
    assert str(tmp_path) not in message


def test_a_broken_library_is_named_without_its_folder(cuda_backend: Callable[[str, str], None], tmp_path: Path):
    (tmp_path / "llama_cpp" / "lib" / "libggml-cuda.so").write_text(
        "not a library, but as long as the header of one " * 9
    )

    message = refusal()

    assert "cannot be loaded: libggml-cuda.so: invalid ELF header" in message
    assert str(tmp_path) not in message


def test_cudas_own_words_come_through(cuda_backend: Callable[[str, str], None]):
    cuda_backend("libggml-cuda.so", "libcuda-of-another-test.so.1")
    log = LlamaLog()
    log.receive(4, b"ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient\n")
    log.receive(4, b"something else\n")

    assert refusal(log.last_error_of("CUDA")).endswith("CUDA: CUDA driver version is insufficient")
    assert refusal(log.last_error_of("Vulkan")).endswith("shows no more devices")


def test_cuda_sees_the_devices_in_their_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    backends.show_only("cuda", ["GPU-b", "GPU-a"])
    assert (backends.os.environ["CUDA_VISIBLE_DEVICES"], backends.os.environ["CUDA_DEVICE_ORDER"]) == (
        "GPU-b,GPU-a",
        "PCI_BUS_ID",
    )
    backends.show_only("cpu", ["2"])
    assert backends.os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["tensor 'x' data is not within the file bounds, model is corrupted or incomplete"], "model_truncated"),
        (["gguf_init_from_reader: failed to read key-value pairs", "failed to load model"], "model_truncated"),
        (["failed to allocate CPU buffer of size 99"], "out_of_memory"),
        (["cudaMalloc failed: out of memory"], "out_of_memory"),
        (["unknown model architecture: 'x'"], "model_unreadable"),
        ([], "model_unreadable"),
    ],
)
def test_llamas_errors_become_a_reason(lines: list[str], code: str):
    said = LlamaLog()
    for line in lines:
        said.receive(4, f"{line}\n".encode())
    assert said.why_not_loaded().code == code


def test_llamas_chatter_is_neither_logged_nor_a_reason(caplog: pytest.LogCaptureFixture):
    said = LlamaLog()
    said.receive(2, b"info: out of memory is not what this says\n")
    said.receive(5, b"...")
    said.receive(3, b"a warning, ")
    said.receive(5, b"and its end\n")
    assert said.why_not_loaded().code == "model_unreadable"
    assert [record.getMessage() for record in caplog.records] == ["a warning,", "and its end"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "model_truncated"),
        (b"GG", "model_truncated"),
        (b"GGUF\x03", "model_truncated"),
        (b"<!do", "model_unreadable"),
    ],
)
def test_a_file_is_judged_by_its_first_bytes(tmp_path: Path, content: bytes, code: str):
    path = tmp_path / "some.gguf"
    path.write_bytes(content)
    with pytest.raises(CannotServe) as caught:
        model_file.check(path)
    assert caught.value.code == code
    assert str(tmp_path) not in caught.value.message


def test_a_missing_file_and_a_folder_are_named_without_their_place(tmp_path: Path):
    for path in (tmp_path / "gone.gguf", tmp_path):
        with pytest.raises(CannotServe, match=path.name) as caught:
            model_file.check(path)
        assert caught.value.code == "model_unreadable"
        assert str(tmp_path) not in caught.value.message
