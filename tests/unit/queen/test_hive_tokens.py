from __future__ import annotations

from pathlib import Path

from llama_orch.queen.hive_tokens import HiveTokens


def test_a_hive_that_is_gone_leaves_no_token(tmp_path: Path):
    for name in ("hives/n1", "inference/n1", "hives/n2", "inference/n2", "inference-token"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch(0o600)
    tokens = HiveTokens(tmp_path)
    for name in ("n1", "n1", "../inference-token", ".hidden"):
        tokens.forget(name)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"hives/n2", "inference/n2", "inference-token"}
