"""`python -m tests.faults [--hosts] [--faults N] [--seeds S…]`: faults at random, and whether all is well again.

On this machine, without root; with `--hosts` on two test hosts, as root.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .driver import Kind, run, table
from .fault import Catalogue, Fault, W

EVER = float("inf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 where nothing stayed wrong."""
    parser = argparse.ArgumentParser("tests.faults", description=__doc__)
    parser.add_argument("--hosts", action="store_true", help="on two test hosts, Debian 12 and 13 (root)")
    parser.add_argument("--faults", type=int, default=100, help="how many, for each seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[secrets.randbelow(10**6)], help="default: one of now")
    parser.add_argument(
        "--within", type=float, default=EVER, metavar="SECONDS", help="only what is promised to be well again by then"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only faults of these names")
    options = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Whoever ends it wants nothing left running; in the background the first would be ignored.
        signal.signal(number, signal.default_int_handler)
    kinds: defaultdict[str, Kind] = defaultdict(Kind)
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="llama-orch-faults-") as folder:
            of_seed = (_on_hosts if options.hosts else _here)(Path(folder), seed, options)
        for name, kind in of_seed.items():
            kinds[name].promise_s = kind.promise_s
            kinds[name].recoveries_s += kind.recoveries_s
            kinds[name].violations += kind.violations
    violations = [one for kind in kinds.values() for one in kind.violations]
    happened = sum(len(kind.recoveries_s) for kind in kinds.values())
    sys.stdout.write("\n".join([table(kinds), *violations, f"{happened} faults, {len(violations)} violations"]) + "\n")
    return 1 if violations else 0


def _here(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Kind]:
    from .local_kinds import LOCAL
    from .local_world import LocalWorld

    return asyncio.run(run(LocalWorld(folder), _chosen(LOCAL, options), seed, options.faults))


def _on_hosts(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Kind]:
    # What boots hosts needs root and tools that a machine without them lacks.
    from .host_kinds import ON_HOSTS
    from .host_world import HostsError, two_hosts

    faults = _chosen(ON_HOSTS, options)
    try:
        with two_hosts(folder) as world:
            return asyncio.run(run(world, faults, seed, options.faults))
    except HostsError as error:
        raise SystemExit(f"error: {error}") from None


def _chosen(catalogue: Catalogue[W], options: argparse.Namespace) -> list[Fault[W]]:
    names = [fault.name for fault in catalogue.faults]
    if unknown := set(options.only or ()) - set(names):
        raise SystemExit(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return [
        fault
        for fault in catalogue.faults
        if fault.promise_s <= options.within and fault.name in (options.only or names)
    ]


if __name__ == "__main__":
    sys.exit(main())
