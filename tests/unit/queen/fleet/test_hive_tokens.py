from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.queen.fleet.hive_tokens import HiveTokens

TOKEN = "a-token-of-enough-length"


def a_token(secrets: Path, name: str) -> Path:
    (secrets / "hives").mkdir(exist_ok=True)
    path = secrets / "hives" / name
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


def test_a_token_stays_with_the_machine_that_got_it(tmp_path: Path):
    tokens = HiveTokens(tmp_path)
    # The first time it is not there yet: the run that follows makes it.
    assert not tokens.give_to("n1", "SHA256:one")
    path = a_token(tmp_path, "n1")
    assert not tokens.give_to("n1", "SHA256:one") and path.exists()
    assert tokens.give_to("n1", "SHA256:two") and not path.exists()
    a_token(tmp_path, "n1")
    assert not tokens.give_to("n1", "SHA256:two") and tokens.token("n1") is not None
    assert all(path.stat().st_mode & 0o77 == 0 for path in (tmp_path / "hives").iterdir())


def test_a_token_that_was_made_by_hand_is_taken_as_the_machines(tmp_path: Path):
    path = a_token(tmp_path, "n1")
    assert not HiveTokens(tmp_path).give_to("n1", "SHA256:one") and path.exists()
    assert HiveTokens(tmp_path).give_to("n1", "SHA256:two")


def test_nothing_is_left_of_a_node_that_is_forgotten(tmp_path: Path):
    tokens = HiveTokens(tmp_path)
    a_token(tmp_path, "n1")
    tokens.give_to("n1", "SHA256:one")
    tokens.forget("n1")
    assert list((tmp_path / "hives").iterdir()) == []
    tokens.forget("n1")


@pytest.mark.parametrize("name", ["../api-token", ".n1.host-key", "a/b"])
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str):
    tokens = HiveTokens(tmp_path)
    (tmp_path / "api-token").write_text(TOKEN)
    assert tokens.token(name) is None and not tokens.give_to(name, "SHA256:one")
    tokens.forget(name)
    assert (tmp_path / "api-token").exists()


def test_a_hive_that_is_gone_leaves_no_token(tmp_path: Path):
    for name in ("hives/n1", "inference/n1", "hives/n2", "inference/n2", "inference-token"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch(0o600)
    tokens = HiveTokens(tmp_path)
    for name in ("n1", "n1", "../inference-token", ".hidden"):
        tokens.forget(name)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"hives/n2", "inference/n2", "inference-token"}
