"""`make bench-worker`: our worker beside llama.cpp's own server and llama-cpp-python's, on this machine.

The last line printed is one JSON object with the ratios; docs/performance.md says what they mean.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from llama_orch.contract.devices import Backend
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.pip import say

from . import process_use, report
from .bench_model import LARGE, SMALL, bench_model
from .llama_cpp_build import bench_cache, llama_cpp_programs
from .measure import SCENARIOS, SHORT, Scenario, measure
from .servers import LLAMA_CPP_SERVER, LLAMA_SERVER, OURS, SERVERS, Setup, llama_cpp_python, serving

SLOT_CONTEXT = 1024
STREAMS = (1, 2, 4, 8)
REFERENCE_SECONDS = 120.0
# With more than this part of a core used by somebody else, a figure says little.
BUSY_CORES = 0.1
PATIENCE_SECONDS = 300.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.worker", description=__doc__)
    parser.add_argument("--rounds", type=int, help="how often each is measured (default: 3)")
    parser.add_argument(
        "--streams", type=int, nargs="+", choices=range(1, 33), metavar="N", help="clients at a time (default: 1 2 4 8)"
    )
    parser.add_argument("--only", nargs="+", choices=SERVERS, help="servers to measure (default: all)")
    parser.add_argument(
        "--backend", choices=get_args(Backend), default="cpu", help="cuda takes a model of 7 billion (default: cpu)"
    )
    parser.add_argument("--programs", type=Path, metavar="FOLDER", help="where llama-server is built already")
    parser.add_argument("--quick", action="store_true", help="4 and 8 streams, short prompts, 2 rounds")
    found = parser.parse_args()
    # The wheel of llama-cpp-python's own server has no CUDA.
    found.only = found.only or (SERVERS if found.backend == "cpu" else (OURS, LLAMA_SERVER))
    if found.backend == "cuda" and LLAMA_CPP_SERVER in found.only:
        parser.error(f"argument --only: {LLAMA_CPP_SERVER} is measured on the processor alone: its wheel has no CUDA")
    found.rounds = found.rounds or (2 if found.quick else 3)
    found.streams = sorted(found.streams or ((4, 8) if found.quick else STREAMS))
    return found


def _run(
    setup: Setup, arguments: argparse.Namespace, scenarios: tuple[Scenario, ...], quiet: process_use.Quiet
) -> report.Results:
    results = report.Results()
    for number in range(arguments.rounds):
        for index, streams in enumerate(arguments.streams):
            # Who comes first finds the machine as the one before has left it.
            turn = (number + index) % len(arguments.only)
            for server in (*arguments.only[turn:], *arguments.only[:turn]):
                quiet.wait()
                began = time.monotonic()
                with serving(server, streams, setup) as running:
                    for scenario in scenarios:
                        results.add(scenario, streams, server, measure(running, scenario, streams, number, quiet))
                first = results.rounds[scenarios[0].name, streams, server][-1]
                where = f"round {number + 1}, {streams} streams, {server}"
                say(f"{where}: {first.tokens_per_s:.0f} tokens/s; took {time.monotonic() - began:.0f} s")
    return results


def _reference(setup: Setup, streams: list[int]) -> str:
    """What llama.cpp itself makes of the same lengths, without HTTP and without requests that come and go."""
    command = [str(setup.programs / "llama-batched-bench"), "--model", str(setup.model)]
    options = {
        "--ctx-size": max(streams) * (SHORT.prompt_tokens + SHORT.answer_tokens),
        "--threads": setup.threads,
        "-npp": SHORT.prompt_tokens,
        "-ntg": SHORT.answer_tokens,
        "-npl": ",".join(map(str, streams)),
        "--output-format": "jsonl",
        "--n-gpu-layers": 999 if setup.backend == "cuda" else 0,
    }
    done = subprocess.run(
        [*command, *(str(part) for pair in options.items() for part in pair)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=REFERENCE_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"llama-batched-bench failed: {done.stdout[-2000:]}")
    rows = [["llama-batched-bench, sequences", "decoding, tokens/s", "with prompts, tokens/s", "prompts, tokens/s"]]
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            one = json.loads(line)
            whole = one["pl"] * one["tg"] / one["t"]
            rows.append([str(one["pl"]), f"{one['speed_tg']:.0f}", f"{whole:.0f}", f"{one['speed_pp']:.0f}"])
    return report.aligned(rows)


def _bench(arguments: argparse.Namespace) -> int:
    cache = bench_cache()
    programs = arguments.programs or llama_cpp_programs(cache)
    python = llama_cpp_python(cache) if LLAMA_CPP_SERVER in arguments.only else None
    model = bench_model(cache, LARGE if arguments.backend == "cuda" else SMALL)
    threads = len(os.sched_getaffinity(0))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llama-orch-bench-") as folder:
        setup = Setup(model, SLOT_CONTEXT, threads, programs, python, Path(folder), arguments.backend)
        quiet = process_use.Quiet(BUSY_CORES, PATIENCE_SECONDS)
        quiet.wait()
        reference = _reference(setup, arguments.streams)
        results = _run(setup, arguments, (SHORT,) if arguments.quick else SCENARIOS, quiet)
    disturbed, measurements = results.disturbed(BUSY_CORES)
    errors = results.errors()
    lines = [
        f"{threads} threads, {arguments.rounds} rounds, medians; took {time.monotonic() - began:.0f} s",
        "",
        report.table(results),
        "",
        reference,
        "",
        f"{disturbed} of {measurements} measurements had more than {BUSY_CORES} cores used by others",
        *(f"failed: {error}" for error in errors[:20]),
        json.dumps(report.ratios(results)),
    ]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if errors else 0


def main() -> int:
    arguments = _arguments()
    # So that whatever ends the benchmark, the servers end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _bench(arguments)
    except KeyboardInterrupt:
        say("bench: stopped")
        return 130
    except (WheelhouseError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        say(f"bench: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
