"""What is wrong in llama.cpp's sources as they are locked, and is put right before anything is compiled.

Each names a text that must be there exactly so often: where an update of llama.cpp has changed it, the build ends and
says so, instead of going on with half of a correction.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama_orch.wheelhouse.errors import WheelhouseError


@dataclass(frozen=True)
class Correction:
    """In one file, by its path in llama.cpp, `wrong` stands `times` times and becomes `right`."""

    path: str
    wrong: str
    right: str
    times: int


_AMX = "ggml/src/ggml-cpu/amx"
CORRECTIONS = (
    # AMX's kernels are right for matrices alone. Weights of three dimensions (DeepSeek's attention) get room for the
    # first of their matrices, and where several sequences of a recurrent or hybrid model are multiplied at once, each
    # but the first is read from beyond the weights and written, by bytes taken for numbers, beyond the result: such
    # models crash (llama.cpp's issues 20824 and 19184). Weights of three dimensions are left to the other kernels; of
    # two there is one matrix for all, and the result's place is in numbers.
    Correction(
        f"{_AMX}/amx.cpp",
        "if (!ggml_is_contiguous(src0) || !ggml_is_contiguous(src1)) {",
        "if (!ggml_is_contiguous(src0) || !ggml_is_contiguous(src1) || !ggml_is_matrix(src0)) {",
        1,
    ),
    Correction(f"{_AMX}/mmq.cpp", "ggml_batch_offset(src0, batch_idx, ne2)", "0", 3),
    Correction(
        f"{_AMX}/mmq.cpp",
        "ggml_batch_offset(dst,  batch_idx, ne2)",
        "ggml_batch_offset(dst,  batch_idx, ne2) / (int64_t) sizeof(float)",
        3,
    ),
)


def apply(llama_cpp: Path) -> None:
    """Put right what is wrong in the sources in this folder. Raises WheelhouseError where they are of another text."""
    for one in CORRECTIONS:
        path = llama_cpp / one.path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.count(one.wrong) != one.times:
            raise WheelhouseError(
                f"llama.cpp's {one.path} is not as it was: {one.wrong!r} stands {text.count(one.wrong)} times, not "
                f"{one.times}. See whether it was mended upstream, and change {Path(__file__).name}"
            )
        path.write_text(text.replace(one.wrong, one.right), encoding="utf-8")
