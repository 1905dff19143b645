"""Model files that tests make: a slow one, one in two parts, and broken ones. All answers are exactly known."""

from __future__ import annotations

from pathlib import Path

import gguf

from llama_orch.demo_model import DemoSpec, _add_metadata, _add_tensors, write_demo_model, write_gguf


def slow_model(path: Path, *, blocks: int = 3, context_length: int = 8192) -> Path:
    """Write the demonstration model with work to do: about 10 ms per token and block on one thread.

    Each block is 26 MB of zeros in a format that is small to store and slow to multiply. Prompts stay fast
    (0.3 ms per token and block), so that only what streams out is slow.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    spec = DemoSpec(
        name="llama-orch slow model",
        context_length=context_length,
        blocks=blocks,
        embedding_length=512,
        feed_forward_length=65536,
        feed_forward_type=gguf.GGMLQuantizationType.IQ2_XXS,
    )
    write_gguf(path, spec)
    return path


LONGEST_TOKEN = 64
"""Letters `a` in the longest token of a `bpe_model`."""


def bpe_model(path: Path, pre_tokenizer: str, *, context_length: int = 8192) -> Path:
    """Write a model with a vocabulary of the BPE kind: each byte is a token, and so are 2, 4 … 64 letters `a`.

    `pre_tokenizer` is one of llama.cpp's names (`llama-vocab.cpp`). Each token is followed by itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    # Bytes that print nothing are written as letters from 256 on (GPT-2's `bytes_to_unicode`).
    others = [byte for byte in range(256) if byte not in printable]
    texts = [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]
    runs = ["a" * 2**power for power in range(1, LONGEST_TOKEN.bit_length())]
    types = [gguf.TokenType.NORMAL] * (len(texts) + len(runs)) + [gguf.TokenType.CONTROL] * 2
    texts += [*runs, "<s>", "</s>"]
    spec = DemoSpec(name=f"llama-orch {pre_tokenizer} model", context_length=context_length)
    width = -(-len(texts) // 32) * 32
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, spec, width)
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(texts)
    writer.add_token_types([int(kind) for kind in types])
    writer.add_token_merges([f"{run[: len(run) // 2]} {run[: len(run) // 2]}" for run in runs])
    writer.add_bos_token_id(len(texts) - 2)
    writer.add_eos_token_id(len(texts) - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m.content }} {% endfor %}")
    _add_tensors(writer, spec, width, list(range(len(texts))))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split_model(folder: Path, *, stem: str = "demo") -> list[Path]:
    """Write the demonstration model as `STEM-0000N-of-00002.gguf` into a folder and return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf(folder / f"{stem}.gguf", DemoSpec(name="llama-orch split model"), tensors_per_file=6)
    return sorted(folder.glob(f"{stem}-*-of-*.gguf"))


def truncated_model(path: Path, *, keep: float = 0.5) -> Path:
    """Write the first part of the demonstration model: its header promises more than the file holds."""
    write_demo_model(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def not_a_gguf(path: Path) -> Path:
    """Write a file that only its name makes a model, as a login page saved by a proxy would be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("<!doctype html><title>Sign in</title>" + "<p>not a model</p>" * 100)
    return path
