"""Which generations of GPUs the CUDA backend is built for, written as CMake's CMAKE_CUDA_ARCHITECTURES."""

from __future__ import annotations

import re

from llama_orch.wheelhouse.errors import WheelhouseError

# Machine code for what is in use: Turing (T4, RTX 20), A100, RTX 30 and A10, RTX 40 and L4, H100, RTX 50. What is not
# listed or comes later (B200, B300) compiles the PTX at its first start; of 90 and not of 120, since llama.cpp turns
# 120 into 120a, whose PTX no other generation can use.
DEFAULT = "75-real;80-real;86-real;89-real;90;120-real"
# CUDA 13 has dropped Maxwell, Pascal (P100; GTX 10, P40) and Volta (V100): who builds with CUDA 12 has those.
DEFAULT_12 = "50-real;60-real;61-real;70-real;75-real;80-real;86-real;89-real;90"
_ARCHITECTURE = re.compile(r"^(?P<number>\d{2,3})(?P<kind>-real|-virtual)?$")


def check(text: str) -> None:
    """Raise WheelhouseError unless the text is a list that CMake's CMAKE_CUDA_ARCHITECTURES takes.

    Without its suffixes a and f, whose code other GPUs of the same generation cannot run: llama.cpp adds them itself.
    """
    for one in text.split(";"):
        if not _ARCHITECTURE.match(one):
            raise WheelhouseError(
                f"--architectures: {one!r} is none; write them as CMake does, such as 86-real;90 "
                "(machine code of 8.6; machine code and PTX of 9.0), and without a or f: llama.cpp adds them where it "
                "needs them"
            )


def code_of(architectures: str) -> tuple[list[str], list[str]]:
    """For which compute capabilities ("86" is 8.6) a list has machine code, and for which PTX.

    One with an "a" runs on exactly that. llama.cpp makes 12x such a one, and its PTX is of no use to any other.
    """
    real: list[str] = []
    virtual: list[str] = []
    for one in architectures.split(";"):
        found = _ARCHITECTURE.match(one)
        if found is None:
            continue
        exact = found["number"].startswith("12")
        if found["kind"] != "-virtual":
            real.append(found["number"] + ("a" if exact else ""))
        if found["kind"] != "-real" and not exact:
            virtual.append(found["number"])
    return real, virtual
