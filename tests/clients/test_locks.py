"""The locks of the clients: hashes for all, and no word of where anything came from."""

from __future__ import annotations

import json
import re

import pytest

from tests.clients import installed
from tests.clients.test_clients import PYTHON


@pytest.mark.parametrize("lock", [*dict.fromkeys(PYTHON.values())])
def test_locks_of_python_have_hashes_and_name_no_address(lock: str):
    text = (installed.HERE / f"{lock}.txt").read_text(encoding="utf-8")
    pins = re.split(r"\n(?=\S)", text.strip())
    assert all(re.match(r"[a-z0-9.-]+==\S+", pin) and "--hash=sha256:" in pin for pin in pins)
    assert "://" not in text and "--index" not in text


def test_the_lock_of_node_has_hashes_and_names_no_address():
    packages = json.loads((installed.HERE / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    fetched = [package for name, package in packages.items() if name]
    assert fetched and all(package["integrity"].startswith("sha512-") for package in fetched)
    assert not [package for package in fetched if "resolved" in package]
