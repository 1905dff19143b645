"""Each CPU library of the engine on a processor that has no more than it needs, and what the compiler made of AMX."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llama_orch.wheelhouse.processors import GENERATIONS, Generation, features_here
from tests.support.engine.copies import package

CHILD = "llama_orch.worker.self_test_child"
# Processors as qemu-user names them. It emulates neither AVX-512 nor AMX.
EMULATED = {"sse42": "Nehalem", "sandybridge": "SandyBridge", "haswell": "Haswell"}
ONE_LESS = {"sandybridge": "Nehalem", "haswell": "SandyBridge"}
NEEDS_REAL = "needs a processor that has it, which no emulator here does"


def library(generation: Generation) -> Path:
    return package() / "lib" / f"lib{generation.target()}.so"


def emulate(processor: str, path: Path) -> subprocess.CompletedProcess[str]:
    emulator = shutil.which("qemu-x86_64")
    assert emulator, "make host-packages installs qemu-user"
    command = [emulator, "-cpu", processor, sys.executable, "-m", CHILD, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def test_the_engine_has_a_library_for_each_generation() -> None:
    assert sorted((package() / "lib").glob("libggml-cpu-*.so")) == sorted(library(one) for one in GENERATIONS)


@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda one: one.name)
def test_a_library_computes_on_a_processor_that_has_no_more_than_it_needs(generation: Generation) -> None:
    if generation.name in EMULATED:
        done = emulate(EMULATED[generation.name], library(generation))
    elif generation.features <= features_here():
        command = [sys.executable, "-m", CHILD, str(library(generation))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    else:
        pytest.skip(f"{generation.name} {NEEDS_REAL}")

    assert (done.returncode, done.stdout.strip()) == (0, "Q4_0, Q4_K, Q8_0"), done.stderr


@pytest.mark.parametrize(("name", "processor"), ONE_LESS.items())
def test_a_library_refuses_a_processor_that_has_less(name: str, processor: str) -> None:
    done = emulate(processor, package() / "lib" / f"libggml-cpu-{name}.so")

    assert (done.returncode, done.stdout.strip()) == (3, f"libggml-cpu-{name}.so cannot be loaded"), done.stderr


def test_rows_and_columns_of_tiles_are_stored_before_they_are_loaded() -> None:
    """A compiler with GCC's bug target/114098 drops these stores; palette and start row alone are left.

    In the 64 bytes that ldtilecfg reads, widths of columns begin at byte 16 and numbers of rows at byte 48 (Intel's
    manual, "Palette and tile configuration").
    """
    path = package() / "lib" / "libggml-cpu-sapphirerapids.so"
    listing = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    loads = [number for number, line in enumerate(listing) if "ldtilecfg" in line]
    assert loads

    for number in loads:
        place = re.search(r"ldtilecfg\s+(-?0x[0-9a-f]+|)\((%\w+)\)", listing[number])
        assert place, listing[number]
        start, register = int(place[1] or "0", 16), place[2]
        stores = re.findall(
            rf"mov\w*\s+[^#\n]*,(-?0x[0-9a-f]+|)\({register}\)", "\n".join(listing[max(0, number - 60) : number])
        )
        written = {int(offset or "0", 16) - start for offset in stores}
        assert {16, 48} <= written, "\n".join(listing[number - 30 : number + 1])
