from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_orch.demo_model import write_demo_model
from llama_orch.hive.models import facts as model_facts
from llama_orch.hive.models.gguf_header import Header, Tensor
from llama_orch.hive.problems import Failed

ATTENTION = ("attn_k.weight",)
MAMBA = ("ssm_in.weight",)


def header(architecture: str, blocks: list[tuple[str, ...]], **values: Any) -> Header:
    """A header with these tensors in its blocks; a value's name has `__` for a dot."""
    named = {f"{architecture}.{key.replace('__', '.')}": value for key, value in values.items()}
    tensors = [Tensor(f"blk.{n}.{name}", (64, 32), 0) for n, names in enumerate(blocks) for name in names]
    named |= {"general.architecture": architecture, f"{architecture}.block_count": len(blocks)}
    return Header(named, tuple(tensors), file_bytes=100, data_bytes=90)


def dense(blocks: list[tuple[str, ...]], architecture: str = "llama", **values: Any) -> model_facts.ModelFacts:
    """Facts of a model with 4 heads of 16 values, 2 of them for keys and values: 128 bytes a token and block."""
    known = {"embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 2}
    return model_facts.of(header(architecture, blocks, **{**known, **values}))


def test_the_demo_model(tmp_path: Path):
    path = write_demo_model(tmp_path / "demo.gguf")
    facts = model_facts.read(path)
    assert (facts.architecture, facts.blocks, facts.context_length, facts.embedding) == ("llama", 1, 4096, 384)
    assert (facts.vocabulary, facts.merges) == (379, 0)
    # One block, one KV head of 32 values for keys and 32 for values, two bytes each.
    assert facts.cache_bytes_per_token == 1 * 1 * (32 + 32) * 2
    assert facts.window_bytes_per_token == facts.state_bytes_per_slot == 0
    assert facts.input_bytes == 379 * 384 * 2
    assert facts.input_bytes < facts.weights_bytes < facts.file_bytes == path.stat().st_size
    assert not facts.shares_input
    assert not facts.makes_vectors
    assert facts.widest == 384


@pytest.mark.parametrize(("kind", "said"), [("adapter", "LoRA"), ("mmproj", "mmproj"), ("imatrix", "importance")])
def test_what_goes_beside_a_model_is_none(kind: str, said: str):
    values = header("llama", [ATTENTION], embedding_length=64).values | {"general.type": kind}
    with pytest.raises(Failed, match=said) as failed:
        model_facts.of(Header(values, (), file_bytes=100, data_bytes=90))
    assert failed.value.problem.code == "model_unreadable"
    assert model_facts.of(Header(values | {"general.type": "model"}, (), 100, 90)).architecture == "llama"


def test_each_block_counts_by_its_own_heads():
    assert dense([ATTENTION] * 3).cache_bytes_per_token == 3 * 128
    assert dense([ATTENTION] * 3, attention__head_count_kv=[2, 0, 1]).cache_bytes_per_token == 128 + 64
    assert dense([ATTENTION], attention__key_length=32, attention__value_length=8).cache_bytes_per_token == 2 * 40 * 2
    assert model_facts.of(
        header("llama", [ATTENTION], embedding_length=64, attention__head_count=4)
    ).cache_bytes_per_token == 256, "as many heads for keys as for queries"  # fmt: skip


@pytest.mark.parametrize(
    ("values", "windowed"),
    [
        ({}, 0),
        ({"attention__sliding_window": 512}, 0),
        ({"attention__sliding_window": 512, "attention__sliding_window_pattern": [True, False, True, True]}, 3),
        ({"attention__sliding_window": 512, "attention__sliding_window_pattern": 2}, 2),
        ({"attention__sliding_window": 512, "attention__sliding_window_pattern": 0}, 4),
        ({"attention__sliding_window": 0, "attention__sliding_window_pattern": 2}, 0),
    ],
)
def test_blocks_with_a_sliding_window(values: dict[str, Any], windowed: int):
    facts = dense([ATTENTION] * 4, **values)
    assert facts.window_bytes_per_token == windowed * 128
    assert facts.cache_bytes_per_token == (4 - windowed) * 128
    assert facts.window == (512 if windowed else 0)


def test_windows_that_the_header_does_not_place():
    facts = dense([ATTENTION] * 6, "gemma3", attention__sliding_window=1024)
    assert (facts.window_bytes_per_token, facts.cache_bytes_per_token) == (5 * 128, 128)
    wider = dense([ATTENTION] * 6, "gemma3", attention__sliding_window=1024, attention__key_length_swa=48)
    assert (wider.window_bytes_per_token, wider.cache_bytes_per_token) == (5 * 256, 128)


def test_blocks_that_keep_nothing():
    assert dense([ATTENTION] * 5, attention__shared_kv_layers=2).cache_bytes_per_token == 3 * 128
    assert dense([ATTENTION] * 5, nextn_predict_layers=1).cache_bytes_per_token == 4 * 128
    assert dense([ATTENTION, ("ffn_up.weight",)]).cache_bytes_per_token == 128


def test_latent_attention_keeps_keys_alone():
    values = {"attention__key_length": 576, "attention__value_length": 512, "attention__key_length_mla": 192}
    values["attention__head_count_kv"] = 1
    blocks = [("attn_kv_a_mqa.weight",)]
    assert dense(blocks, "deepseek2", **values).cache_bytes_per_token == 576 * 2
    indexed = dense(blocks, "deepseek32", **values, attention__indexer__key_length=128)
    assert indexed.cache_bytes_per_token == (576 + 128) * 2


def test_recurrent_blocks_have_a_state():
    values = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16}
    mamba = dense([MAMBA] * 3, "mamba", **values)
    assert mamba.cache_bytes_per_token == 0
    assert mamba.state_bytes_per_slot == 3 * (3 * 128 + 16 * 128) * 4
    grouped = dense([MAMBA, ATTENTION], "granitehybrid", **values, ssm__group_count=2)
    assert grouped.cache_bytes_per_token == 128
    assert grouped.state_bytes_per_slot == (3 * (128 + 2 * 2 * 16) + 16 * 128) * 4
    both = dense([MAMBA + ATTENTION], "falcon-h1", **values)
    assert (both.cache_bytes_per_token, both.state_bytes_per_slot) == (128, (3 * 128 + 16 * 128) * 4)


def test_recurrent_blocks_of_other_kinds():
    assert dense([("time_mix_w1.weight",)], "rwkv7", wkv__head_size=16).state_bytes_per_slot == 64 * (2 + 16) * 4
    assert dense([("shortconv.conv.weight",)], "lfm2", shortconv__l_cache=3).state_bytes_per_slot == 64 * 2 * 4
    values = {"kda__head_dim": 16, "ssm__conv_kernel": 4, "attention__head_count_kv": [0, 1]}
    kimi = dense([("attn_k.weight", "ssm_conv1d_k.weight"), ATTENTION], "kimi-linear", **values)
    assert kimi.state_bytes_per_slot == 4 * 16 * (3 * 3 + 16) * 4
    assert kimi.cache_bytes_per_token == 64
    # Its recurrent blocks have a tensor that is attention's elsewhere.
    qwen = dense([("attn_qkv.weight", "ssm_out.weight"), ATTENTION], "qwen35", ssm__state_size=8, ssm__inner_size=8)
    assert (qwen.cache_bytes_per_token, qwen.state_bytes_per_slot) == (128, 8 * 8 * 4)
    assert dense([("attn_qkv.weight",)], "phi3").cache_bytes_per_token == 128


def test_models_for_vectors():
    bert = dense([("attn_qkv.weight",)], "bert", attention__causal=False, pooling_type=1)
    assert bert.makes_vectors
    assert not bert.has_cache
    assert bert.cache_bytes_per_token == 0
    qwen = dense([ATTENTION], "qwen3", pooling_type=3)
    assert qwen.makes_vectors
    assert qwen.cache_bytes_per_token == 128
    assert not dense([ATTENTION], pooling_type=0).makes_vectors


def test_the_widest_of_a_block():
    tensors = (
        Tensor("token_embd.weight", (64, 32_000), 7),
        Tensor("blk.0.attn_q.weight", (64, 128), 0),
        Tensor("blk.0.attn_norm.weight", (9999,), 0),
        Tensor("blk.0.ffn_up_exps.weight", (64, 48, 16), 0),
        Tensor("blk.0.ffn_down_exps.weight", (48, 64, 16), 0),
    )
    values = {"general.architecture": "m", "m.expert_used_count": 4}
    facts = model_facts.of(Header(values, tensors, 10, 9))
    assert facts.widest == 4 * 64, "each expert in use makes its own"
    assert (facts.input_bytes, facts.shares_input) == (7, True)
    heads = Tensor("blk.0.attn_k_b.weight", (64, 32, 16), 0)
    assert model_facts.of(Header(values, (*tensors, heads), 10, 9)).widest == 16 * 32


@pytest.mark.parametrize("value", ["many", float("nan"), float("inf"), ["many"]])
def test_a_value_that_is_no_number(value: Any):
    with pytest.raises(Failed, match="no number") as failed:
        dense([ATTENTION], context_length=value)
    assert failed.value.problem.code == "model_unreadable"


def test_an_empty_header_has_facts():
    facts = model_facts.of(Header({}, (), 0, 0))
    assert (facts.architecture, facts.context_length, facts.cache_bytes_per_token) == ("unknown", 0, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"llama.block_count": 2**62},
        {"llama.context_length": 2**60},
        {"llama.block_count": -1},
        {"tokenizer.ggml.tokens": 2**40},
        {"llama.embedding_length": 2**40},
        {"llama.attention.key_length": 2**62, "llama.embedding_length": 64},
        {"llama.ssm.inner_size": 2**62, "llama.ssm.conv_kernel": 2**62},
    ],
    ids=str,
)
def test_numbers_that_no_model_has_are_damage(values: dict[str, Any]):
    block = ("attn_k.weight", "ssm_in.weight")
    known: dict[str, Any] = {"general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": 64}
    tensors = tuple(Tensor(f"blk.0.{name}", (1, 1), 4) for name in block)
    assert model_facts.of(Header(known, tensors, 10, 9)).blocks == 1
    with pytest.raises(Failed, match="damaged") as failed:
        model_facts.of(Header(known | values, tensors, 10, 9))
    assert failed.value.problem.code == "model_unreadable"


def test_more_blocks_than_any_model_has_are_damage():
    tensors = tuple(Tensor(f"blk.{number}.attn_k.weight", (1, 1), 4) for number in range(5000))
    with pytest.raises(Failed, match="5000 blocks"):
        model_facts.of(Header({}, tensors, 10, 9))
