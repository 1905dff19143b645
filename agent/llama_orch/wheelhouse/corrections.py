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
_GRAMMAR = "src/llama-grammar.cpp"
# Steps are some nanoseconds: an element of the grammar that is gone through, a candidate that is judged. Who sets no
# limit has none.
_GRAMMAR_STEPS = """\
static thread_local int64_t llama_orch_steps_left = INT64_MAX;
extern "C" LLAMA_API void llama_orch_grammar_allow(int64_t steps);
extern "C" LLAMA_API int64_t llama_orch_grammar_left(void);
extern "C" void llama_orch_grammar_allow(int64_t steps) {
    llama_orch_steps_left = steps;
}
extern "C" int64_t llama_orch_grammar_left(void) {
    return llama_orch_steps_left;
}
static bool llama_orch_spent(size_t steps) {
    llama_orch_steps_left -= (int64_t) steps;
    return llama_orch_steps_left < 0;
}
"""
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
    # A grammar of thirty bytes takes minutes for one token and gigabytes for the next, inside of one call that nothing
    # can end: what may follow is tried character by character in all readings, and those that are alike are not put
    # together. The steps of a thread are counted, between two calls they may be read and set, and where they are used
    # up it goes no further: tokens that were not judged are refused, readings that were not followed are left out. No
    # token that does not fit is ever taken for one that does. What was to be accepted then is not: the caller looks
    # whether steps are left.
    Correction(
        _GRAMMAR,
        "#define MAX_REPETITION_THRESHOLD 2000\n",
        f"#define MAX_REPETITION_THRESHOLD 2000\n{_GRAMMAR_STEPS}",
        1,
    ),
    Correction(
        _GRAMMAR,
        "    while (!todo.empty()) {\n",
        "    while (!todo.empty() && !llama_orch_spent(16 + todo.back().size() + new_stacks.size())) {\n",
        1,
    ),
    Correction(
        _GRAMMAR,
        "    llama_grammar_candidates rejects;\n",
        "    if (llama_orch_spent(32 + candidates.size())) {\n        return candidates;\n    }\n"
        "    llama_grammar_candidates rejects;\n",
        1,
    ),
    Correction(
        _GRAMMAR,
        "        return {};\n    }\n\n    auto rejects = llama_grammar_reject_candidates_for_stack(",
        "        return {};\n    }\n    if (stacks.empty()) {\n        return candidates;\n    }\n\n"
        "    auto rejects = llama_grammar_reject_candidates_for_stack(",
        1,
    ),
    Correction(
        _GRAMMAR,
        "    GGML_ASSERT(!stacks.empty()); // REVIEW\n",
        "    GGML_ASSERT(!stacks.empty() || llama_orch_spent(0)); // REVIEW\n",
        1,
    ),
    Correction(
        _GRAMMAR,
        "    grammar.stacks = std::move(stacks_new);\n    grammar.partial_utf8 = decoded.second;\n",
        "    if (llama_orch_spent(0)) {\n        return;\n    }\n"
        "    grammar.stacks = std::move(stacks_new);\n    grammar.partial_utf8 = decoded.second;\n",
        1,
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
