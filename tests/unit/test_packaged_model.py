from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from llama_orch import packaged_model
from llama_orch.packaged_model import PackagedModel, default_folder, find

CONTENT = b"GGUF and more"
MODEL = PackagedModel(
    name="m",
    package="llm-m",
    version="1",
    wheel_sha256="0" * 64,
    wheel_bytes=9,
    member="llm_m/m.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size_bytes=len(CONTENT),
)
RETRYING = "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by "
NONE = "ERROR: No matching distribution found for llm-m==1"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            [
                f"{RETRYING}'NameResolutionError(\"HTTPSConnection(host='a', port=443): Failed to resolve 'a' "
                "([Errno -2] Name or service not known)\")': /simple/llm-m/",
                NONE,
            ],
            "the Python package index cannot be reached (Name or service not known)",
        ),
        (
            [
                "Could not fetch URL https://a/simple/llm-m/: There was a problem confirming the ssl certificate: "
                "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1)",
                NONE,
            ],
            "the Python package index cannot be reached (certificate verify failed: self-signed certificate)",
        ),
        (
            [f"{RETRYING}'ConnectTimeoutError(<connection>, 'Connection to a timed out.')': /simple/llm-m/", NONE],
            "the Python package index cannot be reached (timed out)",
        ),
        (["Looking in links: /wheels", NONE], "pip could not fetch it: No matching distribution found for llm-m==1"),
        (
            ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", ""],
            "pip could not fetch it: Could not install packages due to an OSError: [Errno 28] No space left on device",
        ),
        (["Usage:", "no such option: --retries", ""], "pip could not fetch it: no such option: --retries"),
        ([], "pip could not fetch it: it does not say why"),
    ],
)
def test_why_pip_failed(said: list[str], why: str):
    assert packaged_model._reason(MODEL, said) == why


def test_it_is_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "llama-orch" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/u")
    assert default_folder() == Path("/home/u/.cache/llama-orch/models")


def test_only_the_right_file_is_found(tmp_path: Path):
    assert find(MODEL, tmp_path) is None
    (tmp_path / "m.gguf").write_bytes(CONTENT)
    assert find(MODEL, tmp_path) == tmp_path / "m.gguf"
    for wrong in (CONTENT[:-1], CONTENT[::-1]):
        (tmp_path / "m.gguf").write_bytes(wrong)
        assert find(MODEL, tmp_path) is None


def test_what_up_takes_is_pinned():
    model = packaged_model.SMOLLM2
    assert model.filename == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert all(len(bytes.fromhex(text)) == 32 for text in (model.wheel_sha256, model.sha256))
