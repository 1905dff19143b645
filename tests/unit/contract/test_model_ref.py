from __future__ import annotations

import pytest

from llama_orch.contract.model_ref import FileRef, HubRef, parse


@pytest.mark.parametrize(
    ("text", "filename", "expected"),
    [
        ("hf:org/repo", None, HubRef("org/repo")),
        ("hf:org/repo", "a.gguf", HubRef("org/repo", None, "a.gguf")),
        ("hf:org/repo@v1.0", None, HubRef("org/repo", "v1.0")),
        ("hf:org/repo@refs/pr/1::file=q/a-Q4_K_M.gguf", None, HubRef("org/repo", "refs/pr/1", "q/a-Q4_K_M.gguf")),
        ("hf:org/repo::file=a.gguf", "a.gguf", HubRef("org/repo", None, "a.gguf")),
        ("file:/models/a b.gguf", None, FileRef("/models/a b.gguf")),
        ("file:/home/me/.cache/a.gguf", None, FileRef("/home/me/.cache/a.gguf")),
    ],
)
def test_what_the_grammar_takes(text: str, filename: str | None, expected: object):
    parsed = parse(text, filename)
    assert parsed == expected
    assert parse(str(parsed)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "org/repo",
        "hf:repo",
        "hf:org/repo/more",
        "hf:../repo",
        "hf:org/..",
        "hf:org/repo@",
        "hf:org/repo@a/../b",
        "hf:-org/repo",
        "hf:org/repo\n",
        "hf:org/repo::file=",
        "hf:org/repo::file=../a.gguf",
        "hf:org/repo::file=/a.gguf",
        "hf:org/repo::file=a.bin",
        "hf:org/repo::file=.a.gguf",
        "hf:{{ 7*7 }}/repo",
        "file:relative.gguf",
        "file:/a/../b.gguf",
        "file:/../b.gguf",
        "file:/a/./b.gguf",
        "file:/a.bin",
        "file:/a\n.gguf",
        "file:/a\x00.gguf",
        "file://host/a.gguf",
        "https://example.com/a.gguf",
    ],
)
def test_what_the_grammar_refuses(text: str):
    with pytest.raises(ValueError, match=r"expected|needs|names"):
        parse(text)


def test_two_file_names_that_differ_are_refused():
    with pytest.raises(ValueError, match="give one of them"):
        parse("hf:org/repo::file=a.gguf", "b.gguf")


def test_a_file_reference_takes_no_filename():
    with pytest.raises(ValueError, match="hf: references only"):
        parse("file:/a.gguf", "a.gguf")
