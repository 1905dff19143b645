"""`python -m tests.faults [--faults N] [--seeds S…]`: faults at random on this machine, without root."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from .driver import Kind, run, table


def main() -> int:
    """Returns 0 where nothing stayed wrong."""
    parser = argparse.ArgumentParser("tests.faults", description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="how many, for each seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[secrets.randbelow(10**6)], help="default: one of now")
    options = parser.parse_args()
    kinds: defaultdict[str, Kind] = defaultdict(Kind)
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="llama-orch-faults-") as folder:
            for name, kind in asyncio.run(run(Path(folder), seed, options.faults)).items():
                kinds[name].recoveries_s += kind.recoveries_s
                kinds[name].violations += kind.violations
    violations = [one for kind in kinds.values() for one in kind.violations]
    sys.stdout.write("\n".join([table(kinds), *violations, f"{len(violations)} violations"]) + "\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
