"""Model files that tests make: a slow one, one in two parts, and broken ones. All answers are exactly known."""

from __future__ import annotations

from pathlib import Path

import gguf

from llama_orch.demo_model import DemoSpec, write_demo_model, write_gguf


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
