from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llama_orch.wheelhouse import architectures, compiler, cuda, cuda_house, toolkit
from llama_orch.wheelhouse.cuda_runtime import RUNTIMES
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.locks import read_lock
from llama_orch.wheelhouse.wheel_file import Wheel, metadata
from tests.unit.wheelhouse.nvcc import fake_nvcc

ROOT = Path(__file__).parents[3]
ELF = b"\x7fELF\0GLIBC_2.34\0GLIBCXX_3.4.30\0"


def wheel_of(folder: Path, name: str, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in files.items():
            archive.writestr(inside, content)
    return path


def backend(cache: Path, nvcc: Path | None = None, wanted: str = "75-real;86-real") -> cuda.Backend:
    return cuda.backend(ROOT, cache, nvcc, wanted)


def test_by_default_it_is_cuda_13_of_nvidias_wheels(tmp_path: Path) -> None:
    made = backend(tmp_path)

    assert (made.nvcc, made.runtime, made.architectures) == (None, RUNTIMES[13], "75-real;86-real")
    assert made.runtime.version(made.pins()) == "13.0"


def test_every_wheel_that_is_built_with_or_installed_is_locked(tmp_path: Path) -> None:
    for runtime in RUNTIMES.values():
        locked = {pin.name for pin in read_lock(ROOT / "agent" / "requirements" / f"{runtime.lock()}.txt")}
        assert set(runtime.wheels()) <= locked
    assert {pin.name for pin in backend(tmp_path).pins()} >= set(toolkit.COMPILER_WHEELS)


def test_the_key_follows_all_that_decides_what_is_built(tmp_path: Path) -> None:
    one = backend(tmp_path)
    others = [
        backend(tmp_path, wanted="86-real"),
        backend(tmp_path, fake_nvcc(tmp_path / "a", "13.0")),
        backend(tmp_path, fake_nvcc(tmp_path / "b", "12.4")),
        backend(tmp_path, fake_nvcc(tmp_path / "c", "12.6")),
        dataclasses.replace(one, runtime=dataclasses.replace(one.runtime, folders=("elsewhere",))),
    ]

    assert len({made.key() for made in (one, *others)}) == 6
    assert backend(tmp_path / "elsewhere").key() == one.key()


def test_another_llama_cpp_python_is_another_build(tmp_path: Path) -> None:
    locks = tmp_path / "agent" / "requirements"
    locks.mkdir(parents=True)
    for name in ("hive", "cuda13", "build"):
        text = (ROOT / "agent" / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
        (locks / f"{name}.txt").write_text(text.replace("llama-cpp-python==0.3", "llama-cpp-python==9.3"))

    assert cuda.backend(tmp_path, tmp_path, None, "75-real;86-real").key() != backend(tmp_path).key()


def test_the_machines_nvcc_decides_the_runtime(tmp_path: Path) -> None:
    made = backend(tmp_path, fake_nvcc(tmp_path, "12.4"))

    assert (made.runtime.major, made.runtime.least_driver) == (12, "525.60.13")
    assert backend(tmp_path, made.nvcc, "61-real").architectures == "61-real"
    assert made.runtime.wheels() == ("nvidia-cuda-runtime-cu12", "nvidia-cublas-cu12", "nvidia-cuda-nvrtc-cu12")


@pytest.mark.parametrize(
    ("release", "words"),
    [("11.8", "hives can get CUDA 12 and 13"), ("13.1", "newer than the runtime that is locked"), ("14.0", "--nvcc")],
)
def test_an_nvcc_without_a_runtime_is_refused(tmp_path: Path, release: str, words: str) -> None:
    with pytest.raises(WheelhouseError, match=words):
        backend(tmp_path, fake_nvcc(tmp_path, release))


def test_a_toolkit_without_cublas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WheelhouseError, match=r"finds no cuBLAS.*libcublas-dev"):
        backend(tmp_path, fake_nvcc(tmp_path, "13.0", cublas=False))


def test_what_is_no_nvcc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WheelhouseError, match="there is no"):
        backend(tmp_path, tmp_path / "nvcc")
    with pytest.raises(WheelhouseError, match="does not name a release"):
        backend(tmp_path, Path("/bin/true"))


@pytest.mark.parametrize("text", ["86,90", "", "86;", "sm_86", "native", "86-fast", "86 ;90", "120a-real", "100f"])
def test_an_architecture_that_cmake_would_not_take_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(WheelhouseError, match="--architectures"):
        backend(tmp_path, wanted=text)


@pytest.mark.parametrize(
    ("release", "text", "words"),
    [
        ("", "86-real;61-real", "CUDA 13 has no code for 61; leave it out, or give the path of an nvcc of CUDA 12"),
        ("", "37", "CUDA 13 has no code for 37; leave it out$"),
        ("12.4", "35-real;61-real", "CUDA 12 has no code for 35; leave it out$"),
    ],
)
def test_an_architecture_that_this_cuda_has_dropped_is_refused(
    tmp_path: Path, release: str, text: str, words: str
) -> None:
    with pytest.raises(WheelhouseError, match=words):
        backend(tmp_path, fake_nvcc(tmp_path, release) if release else None, text)


@pytest.mark.parametrize(
    ("text", "real", "virtual", "name"),
    [
        ("86-real;90-virtual", ["86"], ["90"], "86-ptx90"),
        ("120;121-real", ["120a", "121a"], [], "120ptx-121"),
        ("75", ["75"], ["75"], "75ptx"),
    ],
)
def test_machine_code_and_ptx_are_told_apart(
    tmp_path: Path, text: str, real: list[str], virtual: list[str], name: str
) -> None:
    made = backend(tmp_path, wanted=text)

    assert architectures.code_of(made.architectures) == (real, virtual)
    assert cuda_house.content(made, tmp_path).pointer() == tmp_path / f"cuda-x86_64-cu13-{name}"


def test_without_a_compiler_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(WheelhouseError, match="apt install build-essential"):
        backend(tmp_path).wheel()
    assert not (tmp_path / "cuda").exists()


@pytest.mark.parametrize(("content", "kept"), [(ELF, False), (ELF + b"\0libcuda.so.1\0", True)])
def test_a_library_that_would_not_load_the_driver_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, kept: bool
) -> None:
    def compile_(self: cuda.Backend, work: Path) -> None:
        (work / "build" / "bin").mkdir(parents=True)
        (work / "build" / "bin" / "libggml-cuda.so").write_bytes(content)

    monkeypatch.setattr(cuda.Backend, "_compile", compile_)
    made = backend(tmp_path, wanted="86-real")

    if kept:
        assert made.wheel().name == f"llama_orch_cuda-{made.llama().version}+cu13.0-py3-none-linux_x86_64.whl"
        assert not (tmp_path / "cuda" / made.key()).exists()
    else:
        with pytest.raises(WheelhouseError, match="asks for the driver; remove that folder"):
            made.wheel()
    assert made.wheel().is_file() if kept else not list(tmp_path.rglob("*.whl"))


def test_nvidias_wheels_become_a_toolkit_that_can_be_linked_to(tmp_path: Path) -> None:
    wheels = [
        wheel_of(tmp_path, "nvcc", **{"nvidia/cu13/bin/nvcc": b"#!/bin/sh\n", "nvidia/cu13/nvvm/bin/cicc": b""}),
        wheel_of(tmp_path, "runtime", **{"nvidia/cu13/lib/libcudart.so.13": b"", "nvidia/cu13/include/cuda.h": b"x"}),
        wheel_of(tmp_path, "other", **{"other-1.dist-info/METADATA": b"", "nvidia/__init__.py": b""}),
    ]

    nvcc = toolkit.lay_out(wheels, tmp_path / "cuda")

    assert (nvcc, os.access(nvcc, os.X_OK)) == (tmp_path / "cuda" / "bin" / "nvcc", True)
    assert os.access(tmp_path / "cuda" / "nvvm" / "bin" / "cicc", os.X_OK)
    assert (tmp_path / "cuda" / "lib64" / "libcudart.so").resolve().name == "libcudart.so.13"
    stub = (tmp_path / "cuda" / "lib64" / "stubs" / "libcuda.so").read_bytes()
    assert stub.startswith(b"\x7fELF") and b"libcuda.so.1\0" in stub
    assert sorted(path.name for path in (tmp_path / "cuda").iterdir()) == ["bin", "include", "lib", "lib64", "nvvm"]


def test_wheels_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WheelhouseError, match="no nvcc where it is expected"):
        toolkit.lay_out([wheel_of(tmp_path, "nvcc", **{"nvidia/cuda_nvcc/bin/nvcc": b""})], tmp_path / "cuda")


def test_the_wheel_puts_the_library_where_backends_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "libggml-cuda.so").write_bytes(ELF)
    inside = "llama_cpp/lib/libggml-cuda.so"
    made = Wheel(
        "llama-orch-cuda",
        "1.2+cu13.0",
        metadata("llama-orch-cuda", "1.2+cu13.0", ["other==1"]),
        {inside: tmp_path / "libggml-cuda.so"},
    )
    wheel = made.write(tmp_path)
    bytes_before = wheel.read_bytes()

    # What pip makes of it is asked of pip itself.
    target = tmp_path / "site-packages"
    flags = ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *flags, "--target", target, wheel], check=True, timeout=120
    )

    assert wheel.name == "llama_orch_cuda-1.2+cu13.0-py3-none-linux_x86_64.whl"
    assert (target / inside).read_bytes() == ELF
    with zipfile.ZipFile(wheel) as archive:
        info = "llama_orch_cuda-1.2+cu13.0.dist-info"
        for name, digest, size in csv.reader(io.StringIO(archive.read(f"{info}/RECORD").decode())):
            content = archive.read(name)
            summed = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, size) in [(f"sha256={summed}", str(len(content))), ("", "")]
        assert "Requires-Dist: other==1\n" in archive.read(f"{info}/METADATA").decode()
    assert made.write(tmp_path).read_bytes() == bytes_before


def keep(made: cuda.Backend, folder: Path) -> None:
    """Put into the cache what a build and its downloads would: small wheels."""
    version = made.llama().version
    library = folder / "libggml-cuda.so"
    library.write_bytes(ELF)
    built = made.cache / "wheels" / made.key()
    built.mkdir(parents=True)
    Wheel(cuda.NAME, f"{version}+cu13.0", b"", {"llama_cpp/lib/libggml-cuda.so": library}).write(built)
    pins = [pin for pin in made.pins() if pin.name in made.runtime.wheels()]
    text = "\n".join(pin.requirement() for name in made.runtime.wheels() for pin in pins if pin.name == name)
    kept = made.cache / "downloads" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}-py3.11-x86_64"
    for pin in pins:
        wheel_of(kept, f"{pin.name.replace('-', '_')}-{pin.version}", **{f"nvidia/{pin.name}": b"x" * 1000})


def test_add_ons_stand_beside_each_other_and_outdated_ones_go(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for text in ("86-real", "89-real"):
        made = backend(tmp_path / "cache", wanted=text)
        assert made.told() == f"{text} with CUDA 13.0, about 50 minutes of CPU time"
        keep(made, tmp_path)
        assert made.told() == f"{text} with CUDA 13.0, compiled before"
        cuda_house.build(made, out)
    assert {path.name for path in out.glob("cuda*")} == {"cuda-x86_64-cu13-86", "cuda-x86_64-cu13-89"}

    old = out / "cuda-x86_64-cu13-86"
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps({**manifest, "llama_cpp_python": "0.3.1"}))
    os.utime(old, (0, 0))
    folder = old.resolve()
    cuda_house.build(made, out)

    assert {path.name for path in out.glob("cuda*")} == {"cuda-x86_64-cu13-89"}
    # A playbook may be pushing it.
    assert folder.is_dir()


def test_the_add_on_says_what_a_host_must_have(tmp_path: Path) -> None:
    made = backend(tmp_path / "cache", wanted="86-real;90")
    version = made.llama().version
    keep(made, tmp_path)

    folder = cuda_house.build(made, tmp_path / "out")

    manifest = json.loads((folder / "manifest.json").read_text())
    assert (tmp_path / "out" / "cuda-x86_64-cu13-86-90ptx").readlink() == Path(folder.name) == Path(manifest["release"])
    assert manifest["cuda"] == {
        "runtime": "13.0",
        "least_driver": "580.65.06",
        "architectures": ["86", "90"],
        "ptx": ["90"],
    }
    assert (manifest["part"], manifest["llama_cpp_python"]) == ("cuda", version)
    assert (manifest["glibc"], manifest["glibcxx"]) == ("2.34", "3.4.30")
    assert manifest["installed_bytes"] > 3 * 1000 + len(ELF)
    assert manifest["bytes"] < (folder / "wheels.tar").stat().st_size
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in lines} == {"llama-orch-cuda", *made.runtime.wheels()}
    assert cuda_house.content(dataclasses.replace(made, architectures="75"), tmp_path).key != manifest["lock_hash"]


def test_a_build_that_fails_ends_with_what_it_said() -> None:
    script = "import sys; print('[1/2] compiling'); print('out of registers'); sys.exit(3)"

    with pytest.raises(WheelhouseError, match=r"status 3:\n\[1/2\] compiling\nout of registers"):
        compiler.run_ninja([sys.executable, "-c", script], "it")
    with pytest.raises(WheelhouseError, match="out of registers"):
        compiler.run([sys.executable, "-c", script])
    with pytest.raises(WheelhouseError, match="cannot be run"):
        compiler.run(["/nonexistent"])
