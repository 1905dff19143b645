"""What an agent loads before it answers: a restart is felt by all who ask it meanwhile."""

from __future__ import annotations

import subprocess
import sys

# Those that only a download, a worker, the reading of a GGUF file or the NVIDIA driver needs, each in a process of its
# own or later.
LATER = ("huggingface_hub", "httpx2", "gguf", "numpy", "llama_cpp", "jinja2", "pynvml", "aiohttp")


def test_an_agents_start_loads_nothing_that_it_may_never_need() -> None:
    program = "import sys, llama_orch.hive.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    modules = loaded.stdout.split()
    assert "sanic" in modules
    assert [name for name in LATER if name in modules] == []
