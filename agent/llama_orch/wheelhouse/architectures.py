"""Which generations of GPUs the CUDA backend is built for, written as CMake's CMAKE_CUDA_ARCHITECTURES."""

from __future__ import annotations

import re

from llama_orch.wheelhouse.cuda_runtime import RUNTIMES, Runtime
from llama_orch.wheelhouse.errors import WheelhouseError

_ARCHITECTURE = re.compile(r"^(?P<number>\d{2,3})(?P<kind>-real|-virtual)?$")


def check(text: str, runtime: Runtime) -> None:
    """Raise WheelhouseError unless the text is a list that CMake's CMAKE_CUDA_ARCHITECTURES takes and this CUDA has.

    Without its suffixes a and f, whose code other GPUs of the same generation cannot run: llama.cpp adds them itself.
    """
    for one in text.split(";"):
        found = _ARCHITECTURE.match(one)
        if not found:
            raise WheelhouseError(
                f"--architectures: {one!r} is none; write them as CMake does, such as 86-real;90 "
                "(machine code of 8.6; machine code and PTX of 9.0), and without a or f: llama.cpp adds them where it "
                "needs them"
            )
        if int(found["number"]) < runtime.least_capability:
            raise WheelhouseError(_too_old(int(found["number"]), runtime))


def _too_old(number: int, runtime: Runtime) -> str:
    known = [one.major for one in RUNTIMES.values() if one.least_capability <= number]
    text = f"--architectures: CUDA {runtime.major} has no code for {number}; leave it out"
    return f"{text}, or give the path of an nvcc of CUDA {max(known)} with --nvcc" if known else text


def name_of(architectures: str) -> str:
    """A list as folders are named after it: 86-90ptx of "86-real;90", ptx100 of "100-virtual"."""
    names = {"-real": "{}", "-virtual": "ptx{}", None: "{}ptx"}
    found = (_ARCHITECTURE.match(one) for one in architectures.split(";"))
    return "-".join(names[one["kind"]].format(one["number"]) for one in found if one)


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
