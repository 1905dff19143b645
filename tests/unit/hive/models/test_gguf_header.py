from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGML_QUANT_SIZES

from llama_orch.demo_model import DemoSpec, write_demo_model, write_gguf
from llama_orch.hive.models import gguf_header
from llama_orch.hive.problems import Failed
from tests.support.gguf import lying_models as lies
from tests.support.gguf.models import not_a_gguf, split_model


def test_values_and_tensors_of_the_demo_model(tmp_path: Path):
    path = write_demo_model(tmp_path / "demo.gguf")
    header = gguf_header.read(path)
    assert header.values["general.architecture"] == "llama"
    assert header.values["llama.block_count"] == 1
    assert header.values["tokenizer.ggml.tokens"] == 379, "long lists are counted"
    assert header.file_bytes == path.stat().st_size
    shapes = {tensor.name: (tensor.shape, tensor.size_bytes) for tensor in header.tensors}
    assert shapes["token_embd.weight"] == ((384, 379), 384 * 379 * 2)
    assert shapes["output_norm.weight"] == ((384,), 384 * 4)
    assert sum(tensor.size_bytes for tensor in header.tensors) <= header.data_bytes < header.file_bytes


def test_parts_count_together(tmp_path: Path):
    parts = split_model(tmp_path)
    header = gguf_header.read(parts[0])
    assert header.file_bytes == sum(part.stat().st_size for part in parts)
    write_gguf(tmp_path / "whole.gguf", DemoSpec())
    whole = gguf_header.read(tmp_path / "whole.gguf")
    assert {tensor.name for tensor in header.tensors} == {tensor.name for tensor in whole.tensors}
    parts[1].unlink()
    with pytest.raises(Failed, match="00002-of-00002"):
        gguf_header.read(parts[0])


def test_a_file_cut_anywhere_is_found(tmp_path: Path):
    whole = write_demo_model(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in (4, 10, 23, 24, 300, 5000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(Failed) as failed:
            gguf_header.read(cut)
        assert failed.value.problem.code == "model_truncated", length
        assert str(tmp_path) not in failed.value.problem.message, "no path reaches a client"
    cut.write_bytes(whole)
    gguf_header.read(cut)


def test_what_is_no_gguf_is_found(tmp_path: Path):
    for content in (b"", b"GG", b"<!doctype html>", os.urandom(4096)):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(Failed) as failed:
            gguf_header.read(tmp_path / "x.gguf")
        assert failed.value.problem.code == "model_unreadable"
    with pytest.raises(Failed, match="not a GGUF file"):
        gguf_header.read(not_a_gguf(tmp_path / "page.gguf"))


@pytest.mark.parametrize(
    "header",
    [
        b"GGUF" + struct.pack("<I", 99),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 2**50),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 2**50),
    ],
)
def test_a_damaged_header_takes_neither_memory_nor_time(tmp_path: Path, header: bytes):
    (tmp_path / "x.gguf").write_bytes(header + b"\0" * 100)
    with pytest.raises(Failed) as failed:
        gguf_header.read(tmp_path / "x.gguf")
    assert failed.value.problem.code == "model_unreadable"


@pytest.mark.parametrize(
    "content",
    [
        lies.header(tensors=[lies.tensor(b"t", [2**63 - 1] * 60_000)]),
        lies.header(tensors=[lies.tensor(b"t", [1] * 5)]),
        lies.header(tensors=[lies.tensor(b"t", [1], dimensions=2**32 - 1)]),
        lies.header(tensors=[lies.tensor(b"t", [2**32, 2**32])]),
        lies.header(tensors=[lies.tensor(b"t", [2**62], kind=0)]),
        lies.header(tensors=[lies.tensor(b"t", [0, 2**64 - 1])]),
        lies.header(tensors=[lies.tensor(b"t", [2**40], offset=2**63)]),
        lies.header([lies.value(b"k" * 70_000, lies.U32, b"\0" * 4)]),
        lies.header([lies.value(b"k", lies.STRING, lies.text(b"v" * (9 * 2**20)))]),
        lies.header([lies.value(b"general.alignment", lies.STRING, lies.text(b"x"))]),
        lies.header([lies.value(b"general.alignment", lies.F32, struct.pack("<f", float("nan")))]),
        lies.header([lies.number(b"general.alignment", 3)]),
        lies.header([lies.number(b"general.alignment", 2**63)]),
        lies.header(counts=(0, 1_000_000)),
        lies.header(counts=(1_000_000, 0)),
    ],
    ids=lambda content: repr(content[24:60]),
)
def test_a_header_that_no_model_has_is_damaged_at_once(tmp_path: Path, content: bytes):
    (tmp_path / "x.gguf").write_bytes(content + b"\0" * 100)
    began = time.process_time()
    with pytest.raises(Failed) as failed:
        gguf_header.read(tmp_path / "x.gguf")
    assert failed.value.problem.code == "model_unreadable"
    assert time.process_time() - began < 1


def _lists(count: int, texts: int, length: int) -> list[bytes]:
    content = struct.pack("<IQ", lies.STRING, texts) + lies.text(b"a" * length) * texts
    return [lies.value(f"k{number}".encode(), lies.ARRAY, content) for number in range(count)]


@pytest.mark.parametrize(
    ("content", "bound"),
    [
        (lambda: lies.header(_lists(3, 20, 100)), "MOST_LISTED"),
        (lambda: lies.header(_lists(3, 5, 1000)), "MOST_HEADER_BYTES"),
        (lambda: lies.header([lies.value(b"k", lies.ARRAY, struct.pack("<IQ", lies.U64, 5000))]), "MOST_HEADER_BYTES"),
        (lambda: lies.header([lies.number(b"k%d" % n, 1) for n in range(60)]), "MOST_ENTRIES"),
        (lambda: lies.header([lies.number(b"k" * 100 + b"%d" % n, 1) for n in range(30)]), "MOST_KEPT_BYTES"),
        (
            lambda: lies.header(
                [lies.value(b"k%d" % n, lies.ARRAY, struct.pack("<IQ", lies.U64, 200) + b"\0" * 1600) for n in range(3)]
            ),
            "MOST_KEPT_BYTES",
        ),
    ],
)
def test_a_header_has_a_budget_as_a_whole_and_all_parts_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Callable[[], bytes], bound: str
):
    bounds = {"MOST_LISTED": 50, "MOST_HEADER_BYTES": 12_000, "MOST_ENTRIES": 50, "MOST_KEPT_BYTES": 2000}
    (tmp_path / "x.gguf").write_bytes(content() + b"\0" * 65_536)
    gguf_header.read(tmp_path / "x.gguf")
    monkeypatch.setattr(gguf_header, bound, bounds[bound])
    with pytest.raises(Failed, match="damaged"):
        gguf_header.read(tmp_path / "x.gguf")


def test_the_parts_of_a_model_share_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    parts = split_model(tmp_path)
    monkeypatch.setattr(gguf_header, "MOST_ENTRIES", len(gguf_header.read(parts[0]).tensors) + 5)
    with pytest.raises(Failed, match="damaged"):
        gguf_header.read(parts[0])


def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(Failed, match="is no file"):
        gguf_header.read(tmp_path / "x.gguf")


def test_the_sizes_of_types_are_those_of_the_gguf_package():
    assert {int(kind): size for kind, size in GGML_QUANT_SIZES.items()} == gguf_header.TYPES


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(Failed) as failed:
        gguf_header.read(tmp_path / "missing.gguf")
    assert failed.value.problem.code == "model_not_found"


def test_part_names():
    assert gguf_header.part_names("m-00001-of-00003.gguf") == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert gguf_header.part_names("M-00001-of-00002.GGUF") == [f"M-0000{n}-of-00002.GGUF" for n in (1, 2)]
    for name in ("m.gguf", "m-00001-of-99999.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf"):
        assert gguf_header.part_names(name) == [name]
