from __future__ import annotations

import pytest

from llama_orch.hive.models import quantisation


@pytest.mark.parametrize(
    ("files", "chosen", "because"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_0.gguf"], "m-Q4_K_M.gguf", "usual balance"),
        (
            ["m.Q2_K.gguf", "m.q5_k_m.gguf", "m.f16.gguf"],
            "m.q5_k_m.gguf",
            "nearest of: Q5_K_M, Q2_K, F16",
        ),
        (["m-F16.gguf", "m-Q8_0.gguf"], "m-Q8_0.gguf", "Q8_0 is the nearest"),
        (["m-IQ4_XS.gguf", "m-Q6_K.gguf"], "m-IQ4_XS.gguf", "IQ4_XS is the nearest"),
        (["README.md", "only.gguf"], "only.gguf", "only model"),
        (["mmproj-m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-F32.gguf"], "m-Q8_0.gguf", "nearest"),
        (["alpha-one.gguf", "beta.gguf"], "beta.gguf", "shortest name"),
        (["F16/model.gguf", "Q4_K_M/model.gguf", "Q8_0/model.gguf"], "Q4_K_M/model.gguf", "usual balance"),
        (["m-draft-Q4_K_M.gguf", "m-Q8_0.gguf", "m-F16.gguf"], "m-Q8_0.gguf", "nearest of: Q8_0, F16"),
        (["m.gguf", "m-Q4_K_M-MTP.gguf", "mtp/m-Q4_K_M.gguf"], "m.gguf", "only model"),
        (["m-eagle3-Q4_K_M.gguf", "M-Q8_0.GGUF"], "M-Q8_0.GGUF", "only model"),
        (["lora/a-Q4_K_M.gguf", "m-LoRA-f16.gguf", "m-Q8_0.gguf"], "m-Q8_0.gguf", "only model"),
        (["explored-Q4_K_M.gguf", "m-Q8_0.gguf"], "explored-Q4_K_M.gguf", "usual balance"),
        (["eagle-7b-Q8_0.gguf", "eagle-7b-Q4_K_M.gguf"], "eagle-7b-Q4_K_M.gguf", "usual balance"),
        (
            ["Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "m-Q8_0.gguf"],
            "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf",
            "usual balance",
        ),
    ],
)
def test_choice(files: list[str], chosen: str, because: str):
    found = quantisation.choose(files)
    assert found is not None
    assert found[0] == chosen
    assert because in found[1]
    assert quantisation.choose(reversed(files)) == found, "the order of the listing does not matter"


@pytest.mark.parametrize("files", [[], ["README.md", "model.safetensors"], ["mmproj.gguf"], ["m-00002-of-00002.gguf"]])
def test_nothing_to_choose(files: list[str]):
    assert quantisation.choose(files) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("tinyllama-1.1b-chat-v1.0.Q4_K_S.gguf", "Q4_K_S"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("m-BF16-00001-of-00002.gguf", "BF16"),
        ("Q8_0/plain.gguf", "Q8_0"),
        ("UD-Q4_K_XL/m/plain.gguf", "Q4_K_XL"),
        ("F16/m-Q5_0.gguf", "Q5_0"),
        ("Q4_K_M.GGUF", "Q4_K_M"),
        ("F16-studio-Q5_0.gguf", "Q5_0"),
        ("tinyllama.gguf", None),
    ],
)
def test_names(name: str, kind: str | None):
    assert quantisation.of(name) == kind


def test_every_known_one_is_ranked_once():
    assert len(set(quantisation.ORDER)) == len(quantisation.ORDER)
    assert quantisation.ORDER[0] == quantisation.WANTED
