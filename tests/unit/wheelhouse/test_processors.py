from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.processors import GENERATIONS, features_here, runnable

LEAST = "fpu cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"
HASWELL = f"{LEAST} avx f16c fma avx2 bmi1 bmi2"
SKYLAKEX = f"{HASWELL} avx512f avx512cd avx512vl avx512dq avx512bw"
SAPPHIRERAPIDS = f"{SKYLAKEX} avx512_vnni avx512vbmi avx512_bf16 amx_tile amx_int8"


@pytest.mark.parametrize(
    ("flags", "fastest"),
    [
        # What a virtual machine gets by default from many a hypervisor.
        (LEAST, "sse42"),
        (f"{LEAST} avx f16c", "sandybridge"),
        (HASWELL, "haswell"),
        (f"{HASWELL} avx_vnni", "haswell"),
        (SKYLAKEX, "skylakex"),
        (f"{SKYLAKEX} avx512_vnni", "cascadelake"),
        (SAPPHIRERAPIDS, "sapphirerapids"),
        # A hypervisor that hides the tiles, as many do.
        (SAPPHIRERAPIDS.replace(" amx_tile amx_int8", ""), "cascadelake"),
        (SAPPHIRERAPIDS.replace(" amx_int8", ""), "cascadelake"),
    ],
)
def test_the_fastest_that_a_processor_can_run(tmp_path: Path, flags: str, fastest: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: of a test\nflags\t\t: {flags}\nbugs\t\t: avx2\n\n")

    found = runnable(features_here(cpuinfo))

    assert found[0].name == fastest
    assert found[-1].name == "sse42"
    assert [one.name for one in GENERATIONS if one in found] == [one.name for one in reversed(found)]


@pytest.mark.parametrize(
    ("flags", "missing"), [(LEAST.replace(" popcnt", ""), "popcnt"), ("", "cx16, lahf_lm, popcnt")]
)
def test_a_processor_that_nothing_runs_on_is_refused(tmp_path: Path, flags: str, missing: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags: {flags}\n")

    with pytest.raises(WheelhouseError, match=f"lacks {missing}.*x86-64-v2 or newer"):
        runnable(features_here(tmp_path / "cpuinfo"))
