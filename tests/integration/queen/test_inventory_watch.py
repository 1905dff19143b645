from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Prints a line for each change that it was told of.
_WATCHES = """
import asyncio, pathlib, sys
from llama_orch.queen.inventory import watch as inventory_watch
async def changed():
    print("changed", flush=True)
asyncio.run(inventory_watch.watch(pathlib.Path(sys.argv[1]), changed))
"""


def _in_a_namespace(limit: str, *command: str) -> list[str]:
    """A command that runs where the kernel has nothing left of what `limit` names, for this user alone."""
    set_it = f'echo 0 > /proc/sys/user/{limit} && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "sh", "-c", set_it, "sh", *command]


@pytest.mark.parametrize("limit", ["max_inotify_watches", "max_inotify_instances"])
def test_an_edit_shows_where_the_kernel_has_no_watch_left(tmp_path: Path, limit: str) -> None:
    if subprocess.run(_in_a_namespace(limit, "true"), capture_output=True, check=False).returncode != 0:
        pytest.skip("this kernel lets this user make no user namespace")
    (tmp_path / "hosts.yml").write_text("all:\n")
    watching = subprocess.Popen(
        _in_a_namespace(limit, sys.executable, "-c", _WATCHES, str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout
    assert watching.stderr
    try:
        assert "are compared every 2 s instead" in watching.stderr.readline()
        # The first comparison may come after it; then a line comes with none, after half a minute, and fails the next.
        number = 0
        os.set_blocking(watching.stdout.fileno(), False)
        for _ in range(100):
            (tmp_path / "hosts.yml").write_text(f"all: {{vars: {{n: {(number := number + 1)}}}}}\n")
            if watching.stdout.readline() == "changed\n":
                break
            try:
                watching.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        else:
            pytest.fail("20 s of edits, and none showed")
    finally:
        watching.kill()
        watching.communicate()
