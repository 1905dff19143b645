from __future__ import annotations

import json

from llama_orch.contract.common import Problem
from llama_orch.contract.hive import DownloadRequest, Model, ModelStatus, SpawnRequest
from tests.unit.cli.conftest import Command
from tests.unit.cli.services import Fleet, a_download, a_worker

MODEL = Model(model_ref="hf:o/r", filename="m.gguf", size_bytes=3 << 30, sha256=None, status=ModelStatus.READY)


async def test_models_and_downloads_under_way(fleet: Fleet, command: Command):
    fleet.models.append(MODEL)
    fleet.downloads["d7"] = a_download("d7", bytes_done=500)
    result = await command("models", "list")
    assert result.exit_code == 0 and "3.0 GiB" in result.stdout
    assert "downloading m-Q4_K_M.gguf: 500 B of 1000 B (download d7)" in result.stdout
    assert json.loads((await command("models", "list", "--json")).stdout)[0]["filename"] == "m.gguf"


async def test_pull_shows_progress_and_what_was_chosen(fleet: Fleet, command: Command):
    result = await command("models", "pull", "hf:o/r")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "m-Q4_K_M.gguf is ready (1000 B)\n"
    assert "Q4_K_M of 3 quantisations" in result.stderr and ": 50 %" in result.stderr
    assert fleet.bodies == [DownloadRequest(model_ref="hf:o/r")]


async def test_pull_refuses_what_is_no_reference(fleet: Fleet, command: Command):
    result = await command("models", "pull", "TheBloke/TinyLlama")
    assert result.exit_code == 2 and "hf:org/repo" in result.stderr and not fleet.bodies


async def test_remove_and_cancel(fleet: Fleet, command: Command):
    fleet.models.append(MODEL)
    assert (await command("models", "remove", "hf:o/r")).stdout == "m.gguf of hf:o/r is deleted (3.0 GiB)\n"
    assert (await command("models", "remove", "hf:o/r")).exit_code == 1
    assert (await command("models", "cancel", "d1")).exit_code == 1
    fleet.downloads["d1"] = a_download("d1")
    assert "is cancelled" in (await command("models", "cancel", "d1")).stdout


async def test_start_waits_until_the_worker_serves(fleet: Fleet, command: Command):
    result = await command("workers", "start", "hf:o/r::file=m.gguf", "--slots", "4", "--name", "w")
    assert (result.exit_code, result.stdout) == (0, f"Worker w1 is idle at {fleet.urls['worker']}\n")
    assert "backend: cpu" in result.stderr
    assert fleet.bodies == [SpawnRequest(model_ref="hf:o/r::file=m.gguf", backend="cpu", slots=4, name="w")]
    assert "0/1" in (await command("workers", "list")).stdout


async def test_start_tells_why_a_worker_failed(fleet: Fleet, command: Command):
    fleet.worker_fails = Problem(code="model_truncated", message="the file is cut short", what_to_do="Pull it again.")
    result = await command("workers", "start", "hf:o/r")
    assert result.exit_code == 1
    assert "worker w1 is failed and does not serve: the file is cut short\nPull it again." in result.stderr


async def test_a_backend_is_never_replaced_silently(command: Command):
    result = await command("workers", "start", "hf:o/r", "--backend", "cuda")
    assert result.exit_code == 1 and "this hive has no GPU" in result.stderr
    result = await command("workers", "start", "hf:o/r", "--backend", "tpu")
    assert result.exit_code == 2 and "backend" in result.stderr


async def test_several_gpus_and_how_the_model_is_split(fleet: Fleet, command: Command):
    several = ("--device", "1", "--device", "0", "--tensor-split", "3,1", "--split-mode", "layer")
    await command("workers", "start", "hf:o/r", "--backend", "cuda", *several)
    await command("workers", "start", "hf:o/r", "--backend", "cuda", "--device", "1")
    assert fleet.bodies == [
        SpawnRequest(model_ref="hf:o/r", backend="cuda", devices=[1, 0], tensor_split=[3, 1], split_mode="layer"),
        SpawnRequest(model_ref="hf:o/r", backend="cuda", device=1),
    ]
    wrong = await command("workers", "start", "hf:o/r", "--tensor-split", "3:1")
    assert wrong.exit_code == 2 and "3,1" in wrong.stderr
    wrong = await command("workers", "start", "hf:o/r", "--tensor-split", "3,1")
    assert wrong.exit_code == 2 and "tensor_split: there is nothing to split on one device" in wrong.stderr
    fleet.workers["w9"] = a_worker("w9", backend="cuda", device=1, devices=[1, 0])
    assert "cuda 1,0" in (await command("workers", "list")).stdout


async def test_stop_by_name_by_id_and_all(fleet: Fleet, command: Command):
    fleet.workers = {f"w{n}": a_worker(f"w{n}", name=f"name{n}") for n in range(4)}
    assert (await command("workers", "stop", "w0", "name1")).stdout == "Worker w0 is stopped\nWorker w1 is stopped\n"
    missing = await command("workers", "stop", "w9")
    assert missing.exit_code == 1 and "there is no worker w9" in missing.stderr
    assert len(json.loads((await command("workers", "stop", "--all", "--json")).stdout)) == 2
    assert not fleet.workers
    assert (await command("workers", "stop", "--all")).exit_code == 0
    assert (await command("workers", "stop")).exit_code == 2
    assert (await command("workers", "stop", "w1", "--all")).exit_code == 2


async def test_devices(command: Command):
    result = await command("devices")
    assert "Engine  haswell\n" in result.stdout
    assert "skylakex is left out: it died in its self-test (ended by signal 4 (SIGILL))" in result.stdout
    assert "4.0 GiB available of 8.0 GiB" in result.stdout and "libnvidia-ml.so.1 is not there" in result.stdout
    assert json.loads((await command("devices", "--json")).stdout)["cpu"]["cores"] == 2
