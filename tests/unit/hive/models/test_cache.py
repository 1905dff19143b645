from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.contract.model_ref import HubRef
from llama_orch.hive.models import cache as model_cache

SHA = "ab" * 32


def add(cache: Path, commit: str, name: str, etag: str, *, content: str = "x", ref: str = "main") -> Path:
    home = cache / "models--org--repo"
    blob, link = home / "blobs" / etag, home / "snapshots" / commit / name
    for path in (blob, link, home / "refs" / ref):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_text(content)
    link.symlink_to(blob)
    (home / "refs" / ref).write_text(commit)
    return link


def test_models_are_listed_by_their_reference(tmp_path: Path):
    add(tmp_path, "c1", "m-Q4_K_M.gguf", SHA, content="12345")
    add(tmp_path, "c2", "sub/old.gguf", "e" * 40, ref="v1")
    main, old = model_cache.models(tmp_path)
    assert (main.ref, main.filename, main.size_bytes, main.sha256) == (HubRef("org/repo"), "m-Q4_K_M.gguf", 5, SHA)
    assert (old.ref, old.filename, old.sha256) == (HubRef("org/repo", "v1"), "sub/old.gguf", None)
    assert main.answers("org/repo", None)
    assert main.answers("org/repo", "c1")
    assert not main.answers("org/repo", "v1")


def test_parts_are_one_model_and_only_when_all_are_there(tmp_path: Path):
    add(tmp_path, "c1", "m-00001-of-00002.gguf", "a" * 64, content="12")
    assert model_cache.models(tmp_path) == []
    add(tmp_path, "c1", "m-00002-of-00002.gguf", "b" * 64, content="345")
    (model,) = model_cache.models(tmp_path)
    assert (model.filename, model.size_bytes, model.parts, model.sha256) == ("m-00001-of-00002.gguf", 5, 2, None)


def test_an_ending_in_capitals_is_one_too(tmp_path: Path):
    add(tmp_path, "c1", "X.GGUF", SHA)
    add(tmp_path, "c1", "Y-00001-of-00002.GGUF", "a" * 64)
    add(tmp_path, "c1", "Y-00002-of-00002.GGUF", "b" * 64)
    one, two = model_cache.models(tmp_path)
    assert (one.filename, two.filename, two.parts) == ("X.GGUF", "Y-00001-of-00002.GGUF", 2)
    model_cache.remove(tmp_path, one)
    assert model_cache.models(tmp_path) == [two]


def test_a_name_that_is_no_text_hides_no_other(tmp_path: Path):
    add(tmp_path, "c1", "m.gguf", SHA)
    add(tmp_path, "c1", "\udcff.gguf", "a" * 64)
    assert [model.filename for model in model_cache.models(tmp_path)] == ["m.gguf"]


def test_a_link_without_its_blob_is_no_model(tmp_path: Path):
    add(tmp_path, "c1", "m.gguf", SHA).resolve().unlink()
    assert model_cache.models(tmp_path) == []


def test_removal_keeps_what_others_need(tmp_path: Path):
    add(tmp_path, "c1", "one.gguf", SHA)
    add(tmp_path, "c2", "one.gguf", SHA, ref="v1")
    add(tmp_path, "c1", "two.gguf", "c" * 64)
    shared = tmp_path / "models--org--repo" / "blobs" / SHA
    by_key = {(model.commit, model.filename): model for model in model_cache.models(tmp_path)}
    model_cache.remove(tmp_path, by_key["c1", "one.gguf"])
    assert shared.exists(), "another revision has it too"
    model_cache.remove(tmp_path, by_key["c2", "one.gguf"])
    assert not shared.exists()
    assert not (tmp_path / "models--org--repo" / "refs" / "v1").exists()
    assert [model.filename for model in model_cache.models(tmp_path)] == ["two.gguf"]
    model_cache.remove(tmp_path, by_key["c1", "two.gguf"])
    assert not (tmp_path / "models--org--repo").exists()


@pytest.mark.parametrize("name", ["../../../x", "/etc/x", "a/../../x", "a\0"])
def test_no_name_leads_out_of_the_cache(tmp_path: Path, name: str):
    home = tmp_path / "models--org--repo"
    assert model_cache.part_file(tmp_path, "org/repo", SHA) == home / "blobs" / f"{SHA}.part"
    assert model_cache.revision_file(tmp_path, "org/repo", "pr/1") == home / "refs" / "pr" / "1"
    with pytest.raises(ValueError, match="is no name"):
        model_cache.part_file(tmp_path, "org/repo", name)
    with pytest.raises(ValueError, match="is no name"):
        model_cache.revision_file(tmp_path, "org/repo", name)
