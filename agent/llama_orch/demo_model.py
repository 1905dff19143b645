"""llama-orch's own tiny model: a real GGUF file whose every answer is known in advance.

It is what a fleet without a way to the hub is shown with, and what the tests expect exact text from. It is a
llama with one block of zero attention and feed-forward weights, one-hot embeddings, and an output matrix
that maps each token to the one that follows it. So the next token depends on the last one alone:

- after a letter or a digit comes the next one (`A` → `B`, `Z` → `A`, `z` → `a`, `9` → `0`), without an end;
- after everything else, and so after the chat template's own end, comes the sentence, then the end of text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

import gguf
import numpy as np

DEMO_SENTENCE = (
    "Hello! This is llama-orch's own demonstration model, which always gives exactly this answer; "
    "put any other GGUF file in its place."
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

UNKNOWN, BEGIN, END = 0, 1, 2
"""Ids of `<unk>`, `<s>` and `</s>`."""

_CONTROL_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_CYCLES = (ascii_uppercase, ascii_lowercase, digits)
_SPACE = "\u2581"
_HEAD_LENGTH = 32
# RMS normalisation makes a one-hot vector's one entry √(its length), about 20; this factor lifts the right
# token's logit so far above the others' zero that no high temperature and no penalty changes the answer.
_OUTPUT_SCALE = 4.0


@dataclass(frozen=True)
class DemoSpec:
    """What may differ between two demonstration models.

    `sentence` is the answer: its words must differ from each other and have at least two letters, the first
    three. `context_length` is in tokens. `blocks`, `feed_forward_length` and `feed_forward_type` only make it
    slower; `embedding_length` 0 is the least that fits.
    """

    name: str = "llama-orch demonstration model"
    context_length: int = 4096
    sentence: str = DEMO_SENTENCE
    blocks: int = 1
    embedding_length: int = 0
    feed_forward_length: int = 32
    feed_forward_type: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F16


def sentence_tokens(sentence: str) -> list[str]:
    """Split an answer into the pieces that the model streams: words, each but the first with its space."""
    first, *rest = sentence.split(" ")
    return [first, *(f" {word}" for word in rest)]


def expected_completion(prompt_last_char: str, n: int, *, sentence: str = DEMO_SENTENCE) -> str:
    """Return the text of the `n` tokens that greedy decoding gives after a prompt ending in that character.

    The cycles of letters and digits never end; the sentence does, so its text may have fewer than `n` tokens.
    """
    for cycle in _CYCLES:
        if prompt_last_char and prompt_last_char in cycle:
            start = cycle.index(prompt_last_char) + 1
            return "".join(cycle[(start + step) % len(cycle)] for step in range(n))
    return "".join(sentence_tokens(sentence)[:n])


def write_demo_model(
    path: str | Path,
    *,
    name: str = DemoSpec.name,
    context_length: int = DemoSpec.context_length,
    sentence: str = DEMO_SENTENCE,
) -> Path:
    """Write the model (about 1.3 MB, the same bytes for the same arguments) and return its path.

    The file appears whole or not at all. Raises `ValueError` for a sentence that cannot be (see `DemoSpec`),
    `OSError` when the folder cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        write_gguf(partial, DemoSpec(name=name, context_length=context_length, sentence=sentence))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def write_gguf(path: Path, spec: DemoSpec, *, tensors_per_file: int = 0) -> None:
    """Write the model of `spec` to `path` directly, or as `-0000N-of-0000M` files if a limit is given."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=tensors_per_file)
    texts, types = _vocabulary(spec.sentence)
    width = spec.embedding_length or -(-len(texts) // _HEAD_LENGTH) * _HEAD_LENGTH
    if width < len(texts):
        raise ValueError(f"embedding_length {width} is too small: {len(texts)} tokens are one-hot in it")
    _add_metadata(writer, spec, width)
    _add_tokenizer(writer, texts, types)
    _add_tensors(writer, spec, width, _next_tokens(spec.sentence, texts))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _vocabulary(sentence: str) -> tuple[list[str], list[gguf.TokenType]]:
    words = [piece.replace(" ", _SPACE) for piece in sentence_tokens(sentence)]
    if len(set(words)) != len(words):
        raise ValueError(f"sentence repeats a word, but each is one token with one follower: {sentence!r}")
    # The tokenizer would merge any two characters of a prompt into a token of two.
    if short := [word for word in words if len(word) < 3]:
        raise ValueError(f"sentence has words that are too short (two letters, the first three): {short!r}")
    groups = (
        (["<unk>"], gguf.TokenType.UNKNOWN),
        (["<s>", "</s>"], gguf.TokenType.CONTROL),
        ([f"<0x{byte:02X}>" for byte in range(256)], gguf.TokenType.BYTE),
        (list(_CONTROL_TOKENS), gguf.TokenType.CONTROL),
        ([_SPACE, *(chr(code) for code in range(0x21, 0x7F))], gguf.TokenType.NORMAL),
        (words, gguf.TokenType.NORMAL),
    )
    texts = [text for group, _ in groups for text in group]
    types = [kind for group, kind in groups for _ in group]
    return texts, types


def _next_tokens(sentence: str, texts: list[str]) -> list[int]:
    words = [texts.index(piece.replace(" ", _SPACE)) for piece in sentence_tokens(sentence)]
    following = [words[0]] * len(texts)
    for word, successor in zip(words, [*words[1:], END], strict=True):
        following[word] = successor
    for cycle in _CYCLES:
        for position, character in enumerate(cycle):
            following[texts.index(character)] = texts.index(cycle[(position + 1) % len(cycle)])
    return following


def _add_metadata(writer: gguf.GGUFWriter, spec: DemoSpec, width: int) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(spec.name)
    writer.add_description("Its answers are fixed: the next token depends on the last one alone.")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(width)
    writer.add_block_count(spec.blocks)
    writer.add_feed_forward_length(spec.feed_forward_length)
    writer.add_head_count(width // _HEAD_LENGTH)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(_HEAD_LENGTH)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_tokenizer(writer: gguf.GGUFWriter, texts: list[str], types: list[gguf.TokenType]) -> None:
    writer.add_vocab_size(len(texts))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([0.0] * len(texts))
    writer.add_token_types([int(kind) for kind in types])
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(texts.index("<|end|>"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    # Without this the tokenizer puts a space before each prompt, which real models of this kind want.
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensors(writer: gguf.GGUFWriter, spec: DemoSpec, width: int, following: list[int]) -> None:
    count = len(following)
    writer.add_tensor("token_embd.weight", np.eye(count, width, dtype=np.float16))
    output = np.zeros((count, width), dtype=np.float16)
    output[following, np.arange(count)] = _OUTPUT_SCALE
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for block in range(spec.blocks):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{norm}.weight", np.ones(width, dtype=np.float32))
        for part, rows in (("q", width), ("k", _HEAD_LENGTH), ("v", _HEAD_LENGTH), ("output", width)):
            writer.add_tensor(f"blk.{block}.attn_{part}.weight", np.zeros((rows, width), dtype=np.float16))
        inner = spec.feed_forward_length
        for part, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            _add_zeros(writer, f"blk.{block}.ffn_{part}.weight", rows, columns, spec.feed_forward_type)


def _add_zeros(writer: gguf.GGUFWriter, name: str, rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> None:
    if kind == gguf.GGMLQuantizationType.F16:
        writer.add_tensor(name, np.zeros((rows, columns), dtype=np.float16))
        return
    # In each of ggml's block formats all-zero bytes are a block with scale zero, that is zeros.
    block_length, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = np.zeros((rows, columns // block_length * block_bytes), dtype=np.uint8)
    writer.add_tensor(name, data, raw_dtype=kind)
