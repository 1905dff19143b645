"""Worker and llama-cpp-python's own class write the same, on a model whose attention decides what comes next.

The model is random but for one thing: its output is scaled up until the likeliest token leads by far, so that the
order in which numbers are added, which depends on who computes beside whom, changes nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import string
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import gguf
import numpy as np
import pytest

from llama_orch import demo_model
from llama_orch.demo_model import DemoSpec
from tests.integration.worker.test_worker_openai import write_flat_model
from tests.support.worker_process import AGENT, WorkerProcess, complete, post, session_of

SLOTS, TOKENS, CONTEXT = 8, 24, 512
WIDTH, HEADS, KV_HEADS, FEED_FORWARD, BLOCKS = 128, 4, 2, 256, 2
HEAD_LENGTH = WIDTH // HEADS
# Smaller than any lead in what the tests generate, and far above what the order of additions changes.
LEAD = 0.05
GREEDY = {"temperature": 0, "max_tokens": TOKENS}

# What `llama_cpp.Llama` writes after each prompt by itself.
_REFERENCE = """
import json, sys
import llama_cpp
from llama_orch.worker.llama import backends
backends.load()
model = llama_cpp.Llama(sys.argv[1], n_ctx=int(sys.argv[2]), n_batch=512, n_threads=1, verbose=False)
texts = []
for prompt in json.load(sys.stdin):
    answer = model.create_completion(prompt, max_tokens=int(sys.argv[3]), temperature=0.0, repeat_penalty=1.0)
    texts.append(answer["choices"][0]["text"])
json.dump(texts, sys.stdout)
"""


def write_attentive_model(path: Path) -> Path:
    """Two blocks of random weights over the demonstration model's vocabulary; the byte and control tokens are mute."""
    writer = gguf.GGUFWriter(path, "llama")
    texts, types = demo_model._vocabulary(DemoSpec.sentence)
    writer.add_context_length(CONTEXT * SLOTS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_LENGTH)
    writer.add_layer_norm_rms_eps(1e-5)
    demo_model._add_tokenizer(writer, texts, types)
    draw = np.random.default_rng(4)

    def weights(name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        values = draw.standard_normal((rows, columns)) * scale / np.sqrt(columns)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    weights("token_embd", len(texts), WIDTH, 10)
    output = draw.standard_normal((len(texts), WIDTH)) * 0.5
    output[[number for number, kind in enumerate(types) if kind != gguf.TokenType.NORMAL]] = 0
    writer.add_tensor("output.weight", output.astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    for block in range(BLOCKS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{norm}.weight", np.ones(WIDTH, dtype=np.float32))
        for part, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", HEAD_LENGTH * KV_HEADS, WIDTH),
            ("attn_v", HEAD_LENGTH * KV_HEADS, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", FEED_FORWARD, WIDTH),
            ("ffn_up", FEED_FORWARD, WIDTH),
            ("ffn_down", WIDTH, FEED_FORWARD),
        ):
            weights(f"blk.{block}.{part}", rows, columns, 1.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def prompts_of(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(string.ascii_letters + string.digits, k=draw.randrange(3, 90))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_attentive_model(tmp_path_factory.mktemp("model") / "attentive.gguf")


@pytest.fixture(scope="module")
def worker(model: Path) -> Iterator[WorkerProcess]:
    started = WorkerProcess(model.parent / "worker", model, slots=SLOTS, ctx_per_slot=CONTEXT)
    yield started
    started.kill()


@pytest.fixture
async def http(worker: WorkerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    await worker.until("idle")
    async with session_of(worker) as session:
        yield session


def reference(model: Path, prompts: list[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _REFERENCE, str(model), str(CONTEXT), str(TOKENS)],
        env={**os.environ, "PYTHONPATH": str(AGENT)},
        input=json.dumps(prompts),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def lead(http: aiohttp.ClientSession, prompt: str) -> float:
    """By how much the likeliest token leads, where it leads least."""
    _, answer = await post(http, "/v1/completions", prompt=prompt, logprobs=2, **GREEDY)
    tops = [sorted(top.values(), reverse=True) for top in answer["choices"][0]["logprobs"]["top_logprobs"]]
    assert len(tops) == TOKENS and all(len(top) == 2 for top in tops)
    return min(first - second for first, second in tops)


async def wide(http: aiohttp.ClientSession, prompts: list[str], count: int) -> list[str]:
    """The first `count` of the prompts after which every token leads by far."""
    found = [prompt for prompt in prompts if await lead(http, prompt) > LEAD]
    assert len(found) >= count, f"only {len(found)} of {len(prompts)} prompts have wide margins"
    return found[:count]


async def test_greedy_text_is_that_of_llama_cpp_python_alone_and_in_company(http: aiohttp.ClientSession, model: Path):
    prompts = await wide(http, prompts_of(6 * SLOTS, seed=1), 2 * SLOTS)
    expected = await asyncio.to_thread(reference, model, prompts)
    assert len(set(expected)) == len(prompts), "the answers depend on their prompts"
    assert [await complete(http, prompt, **GREEDY) for prompt in prompts] == expected
    assert await asyncio.gather(*(complete(http, prompt, **GREEDY) for prompt in prompts)) == expected


async def test_a_beginning_that_was_taken_over_changes_nothing(http: aiohttp.ClientSession, model: Path):
    shared = prompts_of(1, seed=5)[0] * 3
    prompts = await wide(http, [shared + end for end in prompts_of(4 * SLOTS, seed=6)], SLOTS)
    expected = await asyncio.to_thread(reference, model, prompts)
    # Something else first, so that no slot holds an answer's own beginning.
    await asyncio.gather(*(complete(http, prompt, **GREEDY) for prompt in prompts_of(SLOTS, seed=7)))
    answers = await asyncio.gather(*(post(http, "/v1/completions", prompt=prompt, **GREEDY) for prompt in prompts))
    assert [answer["choices"][0]["text"] for _, answer in answers] == expected
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for _, answer in answers]
    assert sum(count >= len(shared) for count in cached) >= SLOTS - 1


async def test_attention_decides_what_comes_next(http: aiohttp.ClientSession):
    # The last characters are the same: only by looking back can the answers differ.
    ends = [await complete(http, begin + "the same end", **GREEDY) for begin in prompts_of(4, seed=2)]
    assert len(set(ends)) == len(ends)


async def test_the_same_seed_and_prompt_draw_the_same_alone_and_in_company(model: Path):
    # Its numbers are exactly the same in company, so that nothing but what is drawn can differ.
    flat = WorkerProcess(model.parent / "flat", write_flat_model(model.parent / "flat.gguf"), slots=SLOTS)
    try:
        await flat.until("idle")
        async with session_of(flat) as session:
            prompts = prompts_of(SLOTS, seed=3)

            async def draw(prompt: str, seed: int) -> str:
                return await complete(session, prompt, temperature=0.8, max_tokens=60, seed=seed, ignore_eos=True)

            alone = [await draw(prompt, 11) for prompt in prompts]
            assert [await draw(prompt, 11) for prompt in prompts] == alone
            assert await asyncio.gather(*(draw(prompt, 11) for prompt in prompts)) == alone
            assert await asyncio.gather(*(draw(prompts[0], 11) for _ in prompts)) == [alone[0]] * SLOTS
            others = await asyncio.gather(*(draw(prompts[0], seed) for seed in range(12, 12 + SLOTS)))
            assert len({alone[0], *others}) == SLOTS + 1
    finally:
        flat.kill()
