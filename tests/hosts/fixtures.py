"""Fixtures for every test that needs real machines; a conftest.py takes them in by importing them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .machines import Fleet, missing


@dataclass(frozen=True)
class KeyPair:
    """An ssh key pair of the test run."""

    private: Path
    public: str


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet for the whole test run; without root or the tools the tests are skipped, which in CI is a failure."""
    if why := missing():
        pytest.skip(why)
    with Fleet(tmp_path_factory.mktemp("fleet")) as opened:
        yield opened


@pytest.fixture(scope="session")
def login_key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """A key pair with which tests log in."""
    private = tmp_path_factory.mktemp("login") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", private], check=True, timeout=60)
    return KeyPair(private, private.with_suffix(".pub").read_text().strip())
