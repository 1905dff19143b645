"""`python -m llama_orch.hive.stop_workers --state-dir DIR`: end and forget all workers, without the agent.

For the removal of a hive, and as a last resort where the agent is gone. Stop the agent first.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from pathlib import Path

from .workers import ending, process_table
from .workers.records import RECORD_FILE


async def stop_all(state_dir: Path, *, drain_s: float, term_s: float) -> list[str]:
    """End every worker below `state_dir` and delete its folder; returns the ids of those that will not end."""
    home = process_table.workers_dir(state_dir)
    recorded = {folder.name for folder in home.iterdir()} if home.is_dir() else set()
    ids = sorted(recorded | set(process_table.find(state_dir)))
    for worker_id in ids:
        # First of all, so that an agent that starts meanwhile does not start it again.
        (home / worker_id / RECORD_FILE).unlink(missing_ok=True)
    results = await asyncio.gather(
        *(ending.end(state_dir, worker_id, drain_s=drain_s, term_s=term_s) for worker_id in ids),
        return_exceptions=True,
    )
    stuck = [worker_id for worker_id, result in zip(ids, results, strict=True) if result is not None]
    for worker_id in set(ids) - set(stuck):
        shutil.rmtree(home / worker_id, ignore_errors=True)
    return stuck


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where no worker is left."""
    parser = argparse.ArgumentParser("llama_orch.hive.stop_workers", description="End all workers of a hive.")
    parser.add_argument("--state-dir", type=Path, required=True, help="the hive's state_dir")
    parser.add_argument("--drain-s", type=float, default=0.0, help="seconds that running answers get to end")
    parser.add_argument("--term-s", type=float, default=10.0, help="seconds from SIGTERM to SIGKILL")
    options = parser.parse_args(arguments)
    stuck = asyncio.run(stop_all(options.state_dir.resolve(), drain_s=options.drain_s, term_s=options.term_s))
    if stuck:
        sys.stderr.write(f"these workers survive SIGKILL: {', '.join(stuck)}; restart the machine\n")
    return 1 if stuck else 0


if __name__ == "__main__":
    sys.exit(main())
