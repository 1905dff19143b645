"""Some faults in every run of the tests, chosen anew each time; which they were can be repeated by their seed."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNT, WITHIN_S = 20, 60
# A seed's faults take about two minutes on two cores of their own.
MOST_S = 900


@pytest.mark.fault
def test_twenty_faults_of_a_new_seed_leave_nothing_wrong() -> None:
    seed = secrets.randbelow(10**6)
    flags = f"--faults {COUNT} --within {WITHIN_S} --seeds {seed}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *flags.split()],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=MOST_S,
        check=False,
    )
    sys.stdout.write(f"seed {seed}\n{done.stderr}{done.stdout}")
    again = f'again by: make faults FAULTS_FLAGS="{flags}"'
    assert done.returncode == 0, f"{again}\n{done.stderr[-12000:]}\n{done.stdout[-4000:]}"
    assert re.search(rf"^{COUNT} faults, 0 violations$", done.stdout, re.MULTILINE), again
