from __future__ import annotations

from tests import machine

SAPPHIRE_RAPIDS = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8
flags\t\t: fpu sse4_2 avx f16c fma avx2 avx512f avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8
bugs\t\t: spectre_v1

processor\t: 1
model name\t: another
flags\t\t: fpu
"""


def test_a_processor_is_told_by_name_number_and_what_libraries_differ_by() -> None:
    assert machine.processor(SAPPHIRE_RAPIDS) == (
        "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz (6/143/8) with "
        "AVX AVX2 FMA F16C AVX-VNNI AVX-512 AVX-512-VNNI AMX-INT8 AMX-BF16"
    )
    assert machine.processor("processor\t: 0\nBogoMIPS\t: 50.00\n") == "unknown (?/?/?) with none of AVX and AMX"


def test_the_library_that_a_worker_loads_here_is_named() -> None:
    lines = machine.describe()
    assert [line.partition(":")[0] for line in lines] == ["processor", "compiler", "C library", "llama.cpp"]
    assert "unknown" not in "".join(lines)
    assert "libggml-cpu" in lines[-1] or "backend inside" in lines[-1]
