"""The generations of processors that the engine is built for, and which of them a machine is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama_orch.wheelhouse.errors import WheelhouseError


@dataclass(frozen=True)
class Generation:
    """One library of ggml's for processors that have these features, named as in `/proc/cpuinfo`."""

    name: str
    features: frozenset[str]

    def target(self) -> str:
        """What CMake calls it; the file is `lib<target>.so`."""
        return f"ggml-cpu-{self.name}"


def _generation(name: str, features: str, before: Generation) -> Generation:
    return Generation(name, frozenset(features.split()) | before.features)


# What Python packages are compiled for (NumPy 2.4 and newer), so that nothing of ours runs on less: x86-64-v2.
LEAST = frozenset({"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"})

_SSE42 = Generation("sse42", LEAST)
_SANDYBRIDGE = _generation("sandybridge", "avx", _SSE42)
_HASWELL = _generation("haswell", "f16c fma avx2 bmi2", _SANDYBRIDGE)
_SKYLAKEX = _generation("skylakex", "avx512f avx512cd avx512vl avx512dq avx512bw", _HASWELL)
_CASCADELAKE = _generation("cascadelake", "avx512_vnni", _SKYLAKEX)
_SAPPHIRERAPIDS = _generation("sapphirerapids", "avx512vbmi avx512_bf16 amx_tile amx_int8", _CASCADELAKE)

# Those of ggml's list that are faster than the one before (docs/performance.md, "Processors"); the slowest first.
# Features: `ggml_add_cpu_backend_variant` in ggml/src/CMakeLists.txt, as ggml/src/ggml-cpu/arch/x86/cpu-feats.cpp asks
# the processor for them.
GENERATIONS = (_SSE42, _SANDYBRIDGE, _HASWELL, _SKYLAKEX, _CASCADELAKE, _SAPPHIRERAPIDS)


def runnable(features: frozenset[str]) -> list[Generation]:
    """The generations that a processor with these features can run, the fastest first.

    Raises WheelhouseError where there is none.
    """
    if missing := LEAST - features:
        raise WheelhouseError(
            f"this processor lacks {', '.join(sorted(missing))} (x86-64-v2), which llama-orch and its Python packages "
            "need. A virtual machine has to be given a newer processor: x86-64-v2 or newer, or the host's own"
        )
    return [one for one in reversed(GENERATIONS) if one.features <= features]


def features_here(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What this machine's processor says it has."""
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(value.split())
    return frozenset()
