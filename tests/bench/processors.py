"""How fast each of the engine's CPU libraries reads prompts and writes answers on this machine's processor.

`python -m tests.bench.processors` measures those that are installed and that the processor can run, each in a process
of its own with one thread, on the bench model in several number formats. Processor time is what counts, so that other
programs disturb it little. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from llama_orch.worker.llama import backends
from llama_orch.worker.llama.binding import llama_cpp
from tests.bench.bench_model import bench_model
from tests.bench.llama_cpp_build import bench_cache

# What llama.cpp calls them (enum llama_ftype of llama.h).
FORMATS = {"Q8_0": 7, "Q4_0": 2, "Q4_K_M": 15, "Q6_K": 18, "BF16": 32}
PROMPT_TOKENS, ANSWER_TOKENS, ROUNDS = 128, 16, 2
CHILD_SECONDS = 600


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.processors", description=__doc__)
    parser.add_argument("--libraries", type=Path, help="the folder of libggml-cpu-*.so (default: the engine's own)")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser


def models(cache: Path) -> dict[str, Path]:
    """The bench model in each format; made where the cache has none."""
    whole = bench_model(cache)
    found = {"Q8_0": whole}
    for name, number in FORMATS.items():
        if name == "Q8_0":
            continue
        path = found[name] = whole.with_name(f"{whole.stem}-{name}.gguf")
        if not path.is_file():
            partial = path.with_suffix(".partial")
            parameters = llama_cpp.llama_model_quantize_default_params()
            parameters.ftype, parameters.allow_requantize, parameters.nthread = number, True, os.cpu_count() or 1
            if llama_cpp.llama_model_quantize(str(whole).encode(), str(partial).encode(), ctypes.byref(parameters)):
                raise SystemExit(f"llama.cpp cannot make a {name} of {whole}")
            partial.replace(path)
    return found


def measure(library: Path, model: Path) -> dict[str, float]:
    """Tokens per second of processor time, for prompts and for answers; the best of ROUNDS."""
    ggml = backends.library()
    if not ggml.ggml_backend_load(os.fsencode(library)):
        raise SystemExit(f"{library} cannot be loaded")
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 512, PROMPT_TOKENS, PROMPT_TOKENS
    parameters.n_threads = parameters.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(loaded, parameters)
    memory = llama_cpp.llama_get_memory(context)

    def decode(tokens: list[int]) -> float:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        began = time.process_time()
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama.cpp cannot decode")
        return time.process_time() - began

    prompts, answers = [], []
    for _ in range(ROUNDS):
        llama_cpp.llama_memory_clear(memory, True)
        prompts.append(decode([300 + 7 * place % 5000 for place in range(PROMPT_TOKENS)]))
        answers.append(sum(decode([1000 + place]) for place in range(ANSWER_TOKENS)))
    return {"prompt": round(PROMPT_TOKENS / min(prompts), 1), "answer": round(ANSWER_TOKENS / min(answers), 1)}


_SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    """Measure all, print a table and the JSON line."""
    arguments = _parser().parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.model)))  # noqa: T201
        return
    folder = arguments.libraries or backends.libraries_folder()
    libraries = sorted(folder.glob("libggml-cpu-*.so"))
    runnable = [path for path in libraries if ctypes.CDLL(str(path)).ggml_backend_score()]
    runnable.sort(key=lambda path: ctypes.CDLL(str(path)).ggml_backend_score())
    # Nothing has chosen a backend yet: quantising needs one as well.
    backends.library().ggml_backend_load(os.fsencode(runnable[-1]))
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, model in models(bench_cache()).items():
        for library in runnable:
            command = [sys.executable, "-m", "tests.bench.processors", f"--one={library}", f"--model={model}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False)
            variant = library.stem.removeprefix("libggml-cpu-")
            if done.returncode:
                print(f"{name:8} {variant:16} ended with {done.returncode}")  # noqa: T201
                continue
            speed = json.loads(done.stdout.splitlines()[-1])
            result.setdefault(variant, {})[name] = speed
            line = f"{name:8} {variant:16} prompt {speed['prompt']:8.1f}/s   answer {speed['answer']:6.1f}/s"
            print(line, flush=True)  # noqa: T201
    print(json.dumps({"bench": "processors", "processor": _processor(), "tokens_per_cpu_second": result}))  # noqa: T201


if __name__ == "__main__":
    main()
