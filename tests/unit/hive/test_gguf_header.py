from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from llama_orch.demo_model import DemoSpec, write_demo_model, write_gguf
from llama_orch.hive import gguf_header
from llama_orch.hive.problems import Failed
from tests.models import not_a_gguf, split_model


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


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(Failed) as failed:
        gguf_header.read(tmp_path / "missing.gguf")
    assert failed.value.problem.code == "model_not_found"


def test_part_names():
    assert gguf_header.part_names("m-00001-of-00003.gguf") == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert gguf_header.part_names("m.gguf") == ["m.gguf"]
