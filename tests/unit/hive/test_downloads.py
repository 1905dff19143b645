"""What a reference means on a hive that has files of its repository: never a question to the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.contract import model_ref as refs
from llama_orch.contract.errors import UpstreamFailed
from llama_orch.hive import downloads
from llama_orch.hive.downloads import Downloads
from llama_orch.hive.problems import Failed
from llama_orch.hive.settings import HiveSettings
from tests.unit.hive.test_model_cache import add

Q8, Q5 = "m-Q8_0.gguf", "sub/m-Q5_K_M.gguf"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[refs.HubRef]:
    """What the hub was asked; it gives nothing."""
    seen: list[refs.HubRef] = []

    async def ask(ref: refs.HubRef, *_: object) -> None:
        seen.append(ref)
        raise Failed("hub_unreachable", "the hub cannot be reached", retry=True)

    monkeypatch.setattr(downloads, "_ask_hub", ask)
    return seen


@pytest.fixture
def known(tmp_path: Path) -> Downloads:
    """The downloads of a hive with two files of a branch and, as v1, an older one."""
    cache = tmp_path / "models"
    add(cache, "c" * 40, Q8, "8" * 64)
    add(cache, "c" * 40, Q5, "5" * 64)
    add(cache, "d" * 40, "old.gguf", "e" * 64, ref="v1")
    return Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), None)


@pytest.mark.parametrize(
    ("reference", "file", "explained"),
    [
        ("hf:org/repo", Q5, True),
        ("hf:org/repo@main", Q5, True),
        (f"hf:org/repo@{'c' * 40}", Q5, True),
        ("hf:org/repo@v1", "old.gguf", False),
        (f"hf:org/repo::file={Q8}", Q8, False),
        (f"hf:org/repo@main::file={Q8}", Q8, False),
    ],
)
async def test_what_is_here_is_taken(
    known: Downloads, asked: list[refs.HubRef], reference: str, file: str, explained: bool
):
    job = await known.request(refs.parse(reference), "rest")
    assert job.ready and known.path_of(job.record).is_file()
    assert job.view().filename == file
    assert (job.view().chosen_because is not None) == explained
    assert await known.request(refs.parse(reference), "rest") is job
    assert asked == []


async def test_one_file_that_is_here_is_one_download_whatever_it_is_called(known: Downloads, asked: list[refs.HubRef]):
    named = await known.request(refs.HubRef("org/repo", "v1", "old.gguf"), "rest")
    assert await known.request(refs.HubRef("org/repo", "v1"), "rest") is named
    assert await known.request(refs.HubRef("org/repo", "d" * 40), "rest") is named
    assert asked == []


async def test_a_choice_among_files_that_are_here_is_explained(known: Downloads, asked: list[refs.HubRef]):
    named = await known.request(refs.HubRef("org/repo", None, Q5), "rest")
    assert named.view().chosen_because is None
    because = (await known.request(refs.HubRef("org/repo"), "rest")).view().chosen_because
    assert because == (
        "of those that are here, there is no Q4_K_M; Q5_K_M is the nearest of: Q5_K_M, Q8_0; name another with ::file="
    )
    assert asked == []


@pytest.mark.parametrize(
    "reference", ["hf:org/repo::file=m-Q4_K_M.gguf", "hf:org/repo@v2", "hf:org/other", f"hf:org/repo@v1::file={Q8}"]
)
async def test_what_is_not_here_is_the_hubs_to_say(known: Downloads, asked: list[refs.HubRef], reference: str):
    with pytest.raises(UpstreamFailed, match="cannot be reached"):
        await known.request(refs.parse(reference), "rest")
    assert asked == [refs.parse(reference)]


async def test_what_is_no_model_is_not_taken_for_one(tmp_path: Path, asked: list[refs.HubRef]):
    cache = tmp_path / "models"
    add(cache, "c" * 40, "mmproj-F16.gguf", "8" * 64)
    known = Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), None)
    with pytest.raises(UpstreamFailed):
        await known.request(refs.HubRef("org/repo"), "rest")
    assert len(asked) == 1


async def test_a_draft_alone_is_the_hubs_to_judge_and_is_taken_where_that_is_silent(
    tmp_path: Path, asked: list[refs.HubRef]
):
    cache = tmp_path / "models"
    add(cache, "c" * 40, "m-draft-Q4_K_M.gguf", "8" * 64)
    known = Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), None)
    job = await known.request(refs.HubRef("org/repo"), "rest")
    assert (job.ready, job.view().filename, len(asked)) == (True, "m-draft-Q4_K_M.gguf", 1)
    add(cache, "c" * 40, "m-Q8_0.gguf", "9" * 64)
    known = Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), None)
    assert (await known.request(refs.HubRef("org/repo"), "rest")).view().filename == "m-Q8_0.gguf"
    assert len(asked) == 1


async def test_what_lies_in_the_cache_under_a_name_that_is_none_of_ours_is_the_hubs_to_say(
    tmp_path: Path, asked: list[refs.HubRef]
):
    cache = tmp_path / "models"
    add(cache, "c" * 40, "a {{ model }}.gguf", "8" * 64)
    known = Downloads(HiveSettings(state_dir=tmp_path / "state", models_dir=cache), None)
    with pytest.raises(UpstreamFailed):
        await known.request(refs.HubRef("org/repo"), "rest")
    assert len(asked) == 1
