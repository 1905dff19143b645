"""The memory that the hive computes for a worker, beside what llama.cpp says of itself and what a worker takes."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llama_orch.contract import process
from llama_orch.hive.models import facts as model_facts
from llama_orch.hive.models import memory
from tests.support.gguf import sparse_models
from tests.support.gguf.sparse_models import Q4_0
from tests.support.hives import INFERENCE_TOKEN, ROOT, HiveProcess, a_hive

MIB = 2**20
CONTEXT = 4096
# llama.cpp logs MiB with two decimals, for keys and values or for each of two caches.
ROUNDING = 0.02 * MIB

SHAPES: list[Callable[[Path], Path]] = [
    sparse_models.llama,
    sparse_models.gemma3,
    sparse_models.qwen3moe,
    sparse_models.mamba,
    sparse_models.jamba,
    sparse_models.lfm2,
    sparse_models.qwen35,
]


@pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)
@pytest.mark.parametrize(("slots", "context"), [(1, 4096), (3, 3000)])
def test_what_llama_cpp_says_of_itself(tmp_path: Path, make: Callable[[Path], Path], slots: int, context: int):
    path = make(tmp_path / "model.gguf")
    facts = model_facts.read(path)
    told = subprocess.run(
        [sys.executable, "-m", "tests.support.gguf.llama_sizes", str(path), str(slots), str(context)],
        check=True, stdout=subprocess.PIPE, cwd=ROOT, env={"PYTHONPATH": f"{ROOT / 'agent'}:{ROOT}"}, timeout=60,
    )  # fmt: skip
    sizes = json.loads(told.stdout)
    assert memory.cache_bytes(facts, slots, context) == pytest.approx(sizes["cache"], abs=ROUNDING)
    # Its plan follows the order in which results come and go; the formula knows only how wide they are.
    estimate = memory.compute_bytes(facts, slots, context, process.BATCH_TOKENS)
    assert 0.95 * sizes["compute"] <= estimate <= 1.5 * sizes["compute"]


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[HiveProcess]:
    async with a_hive(tmp_path) as running:
        yield running


@pytest.mark.parametrize(
    ("make", "slots"),
    [
        (sparse_models.llama, 1),
        (sparse_models.llama, 8),
        (lambda path: sparse_models.llama(path, blocks=6, embedding=512, feed_forward=1536, vocabulary=64_000), 1),
        (sparse_models.gemma3, 4),
    ],
    ids=["214 MB, 1 slot", "214 MB, 8 slots", "large vocabulary", "sliding window"],
)
async def test_the_estimate_is_within_15_percent_of_what_a_worker_takes(
    hive: HiveProcess, tmp_path: Path, make: Callable[[Path], Path], slots: int
):
    path = make(tmp_path / "model.gguf")
    await _assert_fits(hive, path, slots)


async def test_weights_that_are_laid_out_anew_count_once(hive: HiveProcess, tmp_path: Path):
    # With AVX2, llama.cpp copies weights of 4 bits into another order; with AMX those of others as well.
    await _assert_fits(hive, sparse_models.llama(tmp_path / "model.gguf", blocks=6, kind=Q4_0), 1)


async def _assert_fits(hive: HiveProcess, path: Path, slots: int) -> None:
    """The estimate is near what a worker takes: not counted are pages of the file that were read for a copy alone.

    The table of embeddings is never copied, and no request reads all of it: it may count or not.
    """
    worker = await hive.idle(f"file:{path}", slots=slots, ctx_per_slot=CONTEXT)
    _forget_reads(worker["pid"])
    await _work(worker)
    taken = _peak_bytes(worker["pid"]) - _unread_bytes(worker["pid"], path)
    most = taken + model_facts.read(path).input_bytes
    estimate = worker["memory_estimated_bytes"]
    assert 0.85 * taken <= estimate <= 1.15 * most, f"{estimate / MIB:.0f} MiB for {taken / MIB:.0f} MiB"


async def _work(worker: dict[str, Any]) -> None:
    """Draw tokens, read a full step's, and take as many logits at once as all slots can ask for."""
    await _all_slots(worker, length=20, max_tokens=4, temperature=0.8)
    await _complete(worker, [11] * 600, max_tokens=1)
    await _all_slots(worker, length=260, max_tokens=1, echo=True, logprobs=1)


async def _all_slots(worker: dict[str, Any], *, length: int, **fields: object) -> None:
    # Prompts that begin differently, so that no slot takes over what another has computed.
    await asyncio.gather(*(_complete(worker, [20 + n] * length, **fields) for n in range(worker["slots"])))


async def _complete(worker: dict[str, Any], prompt: list[int], **fields: object) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {INFERENCE_TOKEN}"}) as session,
        session.post(f"{worker['url']}/v1/completions", json={"prompt": prompt, **fields}) as answer,
    ):
        assert answer.status == 200, await answer.text()


def _peak_bytes(pid: int) -> int:
    """The most that a process held."""
    return _kilobytes(Path(f"/proc/{pid}/status").read_text(), "VmHWM")


def _forget_reads(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("1")


def _unread_bytes(pid: int, model: Path) -> int:
    """Pages of the model's file that the process holds but has not read since `_forget_reads`."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text(), flags=re.MULTILINE)
    of_model = [mapping for mapping in mappings if str(model) in mapping]
    assert of_model, "the file is mapped"
    return sum(_kilobytes(mapping, "Rss") - _kilobytes(mapping, "Referenced") for mapping in of_model)


def _kilobytes(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found, name
    return int(found[1]) * 1024
