from __future__ import annotations

import pytest
from pydantic import ValidationError

from llama_orch.contract.hive import DownloadRequest
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
        ("file:/a (1)/[b], c=~d & e!/X.GGUF", None, FileRef("/a (1)/[b], c=~d & e!/X.GGUF")),
        ("file:/home/Jörg/Модели/模型.gguf", None, FileRef("/home/Jörg/Модели/模型.gguf")),
        ("file:/~/#1/(x)/+y.gguf", None, FileRef("/~/#1/(x)/+y.gguf")),
        ("hf:org/repo::file=Q4 (new)/Ü [x], a=b~@.GGUF", None, HubRef("org/repo", None, "Q4 (new)/Ü [x], a=b~@.GGUF")),
        ("hf:org/repo@v1::file=Модель.gguf", None, HubRef("org/repo", "v1", "Модель.gguf")),
        # As macOS writes an umlaut: a letter and a mark behind it.
        ("hf:org/repo::file=u\u0308.gguf", None, HubRef("org/repo", None, "u\u0308.gguf")),
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
        "file:/a\x7f.gguf",
        "file:/a\x85.gguf",
        "file:/a\u202egguf.gguf",
        "file:/a\u2028.gguf",
        "file:/a\udcff.gguf",
        "file:/-a/b.gguf",
        "file:/{{ 7*7 }}.gguf",
        "file:/$(id).gguf",
        "file:/`id`.gguf",
        'file:/a".gguf',
        "file:/a\\b.gguf",
        "file:/a;b.gguf",
        f"file:/{'ü' * 126}.gguf",
        "hf:org/repo::file=-a.gguf",
        "hf:org/repo::file= a.gguf",
        "hf:org/repo::file=~/a.gguf",
        "hf:org/repo::file=a/-b.gguf",
        "hf:org/repo::file=a/../b.gguf",
        "hf:org/repo::file={{ x }}.gguf",
        "hf:org/repo::file=a%2e.gguf",
        "hf:org/repo::file=a\n.gguf",
        f"hf:org/repo::file={'ü' * 126}.gguf",
        "file://host/a.gguf",
        "https://example.com/a.gguf",
    ],
)
def test_what_the_grammar_refuses(text: str):
    with pytest.raises(ValueError, match=r"expected|needs|names"):
        parse(text)


@pytest.mark.parametrize("name", ["Q4 (new)/Ü [x], a=b~.GGUF", "Модель.gguf", "m-Q4_K_M.gguf"])
def test_a_request_takes_the_same_names_as_a_field(name: str):
    assert DownloadRequest(model_ref="hf:org/repo", filename=name).ref == HubRef("org/repo", None, name)


@pytest.mark.parametrize("name", ["a\n.gguf", "-a.gguf", "../a.gguf", "{{ x }}.gguf", "ü" * 126 + ".gguf", "a.bin"])
def test_a_request_names_the_field_that_it_refuses(name: str):
    with pytest.raises(ValidationError, match="filename"):
        DownloadRequest(model_ref="hf:org/repo", filename=name)


def test_two_file_names_that_differ_are_refused():
    with pytest.raises(ValueError, match="give one of them"):
        parse("hf:org/repo::file=a.gguf", "b.gguf")


def test_a_file_reference_takes_no_filename():
    with pytest.raises(ValueError, match="hf: references only"):
        parse("file:/a.gguf", "a.gguf")
