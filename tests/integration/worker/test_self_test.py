"""The engine's self-test, with real libraries: right ones, one that dies and one that computes wrongly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llama_orch.contract.devices import EngineLibrary, LibraryResult
from llama_orch.demo_model import write_demo_model
from llama_orch.hive.devices import engine_test
from llama_orch.worker import self_test, self_test_model
from llama_orch.worker.llama import backends
from tests.support.engine import copies
from tests.support.hives import a_hive, complete

CHILD = "llama_orch.worker.self_test_child"


def run(module: str, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_installed_engine_computes_here() -> None:
    done = run(self_test.__name__, "--json")

    found = [EngineLibrary.model_validate(one) for one in json.loads(done.stdout)]
    assert (done.returncode, [one.result for one in found]) == (0, [LibraryResult.PASSED]), done
    assert found[0].file == backends.cpu_libraries()[0].name
    assert found[0].reason == ", ".join(self_test_model.FORMATS)


@pytest.mark.parametrize("library", backends.cpu_libraries(), ids=lambda path: path.stem.removeprefix("libggml-cpu-"))
def test_every_library_that_runs_here_computes(library: Path) -> None:
    for flags in ([], ["--confined"]):
        done = run(CHILD, str(library), *flags)
        assert (done.returncode, done.stdout.strip()) == (0, "Q4_0, Q4_K, Q8_0"), done.stderr


@pytest.mark.parametrize(
    ("kind", "result", "reason"),
    [
        ("dies", "died", "ended by signal 4 (SIGILL)"),
        ("wrong", "wrong", "Q4_0, 67 tokens at once: 67 of 67 answers are wrong"),
    ],
)
async def test_a_library_that_is_not_right_is_left_out_and_said(
    tmp_path: Path, kind: str, result: str, reason: str
) -> None:
    site = copies.engine_with(kind, tmp_path)
    environment = copies.environment(site)
    right = backends.cpu_libraries()[0]
    name = right.stem.removeprefix("libggml-cpu-")

    lines = run(self_test.__name__, environment=environment)
    assert lines.returncode == 0
    assert lines.stdout.splitlines() == [
        f"self-test of {kind}: {result} ({reason})",
        f"self-test of {name}: passed (Q4_0, Q4_K, Q8_0)",
    ]

    model = write_demo_model(tmp_path / "demo.gguf")
    async with a_hive(tmp_path, environment=environment) as hive:
        worker = await hive.idle(f"file:{model}", slots=1)
        assert await complete(worker["url"], "A", 5) == "BCDEF"
        spec = json.loads((hive.state_dir / "workers" / worker["id"] / "spec.json").read_text())
        assert spec["cpu_library"] == right.name

        devices = await hive.ok("GET", "/api/v1/devices")
        tried = [(one["name"], one["result"], one["reason"]) for one in devices["engine"]["libraries"]]
        assert tried == [(kind, result, reason), (name, "passed", "Q4_0, Q4_K, Q8_0")]
        assert devices["engine"]["cpu_library"] == right.name
        async with aiohttp.ClientSession() as session, session.get(f"{hive.url}/metrics") as answer:
            metrics = await answer.text()
        assert f'llama_orch_hive_engine_libraries{{library="{kind}",result="{result}"}} 1.0' in metrics
        assert f'llama_orch_hive_engine_libraries{{library="{name}",result="passed"}} 1.0' in metrics
        assert f"engine: self-test of {kind}: {result} ({reason})" in hive.log()

        # Kept: another start of the same boot tests nothing.
        kept = (hive.state_dir / engine_test.FILE).stat().st_mtime_ns
        await hive.end()
        await hive.start()
        assert (await hive.ok("GET", "/api/v1/devices"))["engine"] == devices["engine"]
        assert (hive.state_dir / engine_test.FILE).stat().st_mtime_ns == kept


async def test_where_no_library_computes_a_worker_says_so(tmp_path: Path) -> None:
    site = copies.engine_with("dies", tmp_path)
    for library in (site / "llama_cpp" / "lib").glob("libggml-cpu-*.so"):
        if library.name != "libggml-cpu-dies.so":
            library.unlink()
    environment = copies.environment(site)

    assert run(self_test.__name__, environment=environment).returncode == 1
    async with a_hive(tmp_path, environment=environment) as hive:
        worker = await hive.spawn(f"file:{write_demo_model(tmp_path / 'demo.gguf')}")
        failed = await hive.worker(worker["id"], status="failed")

    assert failed["last_error"]["code"] == "engine_unusable"
    assert "dies: died (ended by signal 4 (SIGILL))" in failed["last_error"]["message"]


def test_a_binding_of_another_size_is_found_out(tmp_path: Path) -> None:
    site = copies.engine_with("dies", tmp_path)
    sizes: dict[str, Any] = json.loads((site / "llama_cpp" / "lib" / "params.json").read_text())
    sizes["llama_context_params"] += 8
    (site / "llama_cpp" / "lib" / "params.json").write_text(json.dumps(sizes))

    done = run(CHILD, str(backends.cpu_libraries()[0]), environment=copies.environment(site))

    assert done.returncode == self_test.EXIT_WRONG
    assert "llama_context_params has 168 bytes in llama.cpp and 160 in llama-cpp-python" in done.stdout


def test_a_library_that_cannot_be_loaded_is_wrong(tmp_path: Path) -> None:
    broken = tmp_path / "libggml-cpu-broken.so"
    broken.write_bytes(os.urandom(4096))

    done = run(CHILD, str(broken))

    said = f"{broken.name} cannot be loaded: {broken.name}: invalid ELF header"
    assert (done.returncode, done.stdout.strip()) == (self_test.EXIT_WRONG, said)


def test_a_cuda_backend_that_shows_no_gpu_is_not_tested(tmp_path: Path) -> None:
    library = tmp_path / "libggml-cuda.so"
    copies.cuda_without_gpu(library)

    done = run(CHILD, str(backends.cpu_libraries()[0]), "--cuda", str(library))

    assert (done.returncode, done.stdout.strip()) == (self_test.EXIT_NOT_TESTED, "CUDA shows no GPU"), done.stderr


def test_a_cuda_backend_without_a_driver_is_not_tested(tmp_path: Path) -> None:
    # Linked to a library of the driver's name, which is then not there.
    driver = tmp_path / "libcuda.so.999"
    subprocess.run(["cc", "-shared", "-o", driver, "-x", "c", "/dev/null"], check=True, timeout=60)
    library = tmp_path / "libggml-cuda.so"
    flags = ["-Wl,--no-as-needed", f"-L{tmp_path}", f"-l:{driver.name}", "-x", "c", "/dev/null"]
    subprocess.run(["cc", "-shared", "-o", library, *flags], check=True, timeout=60)
    driver.unlink()

    done = run(CHILD, str(backends.cpu_libraries()[0]), "--cuda", str(library))

    assert done.returncode == self_test.EXIT_NOT_TESTED
    assert done.stdout.startswith("libggml-cuda.so cannot be loaded: libcuda.so.999: cannot open shared object file")
