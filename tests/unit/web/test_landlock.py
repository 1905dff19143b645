from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llama_orch.web import landlock
from llama_orch.web.landlock import Access

AGENT = Path(landlock.__file__).parents[2]
# Restricts itself as a kernel of this version would, to one folder, and says what it can do then.
CHILD = """
import pathlib, socket, sys
from llama_orch.web import landlock
from llama_orch.web.landlock import Access
folder, version = pathlib.Path(sys.argv[1]), int(sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
landlock.restrict([(folder / "open", Access.READ_FILE | Access.READ_DIR), (folder / "gone", Access.READ_FILE)], version)
client = socket.socket()
client.settimeout(5)
def can(work):
    try:
        work()
    except OSError:
        return 0
    return 1
address = listener.getsockname()
print(can((folder / "open" / "file").read_bytes), can((folder / "shut").read_bytes),
      can(lambda: (folder / "open" / "new").touch()), can(lambda: client.connect(address)))
"""


def test_each_version_takes_away_what_it_knows():
    assert Access.MAKE_SYM in landlock.handled(1) and Access.REFER not in landlock.handled(1)
    added = [landlock.handled(version) & ~landlock.handled(version - 1) for version in range(2, 9)]
    assert added == [Access.REFER, Access.TRUNCATE, Access(0), Access.IOCTL_DEV, Access(0), Access(0), Access(0)]


@pytest.mark.parametrize("version", range(1, 7))
def test_a_process_that_is_restricted_keeps_what_is_allowed(tmp_path: Path, version: int):
    if landlock.abi() < version:
        pytest.skip("the kernel's Landlock is older")
    (tmp_path / "open").mkdir()
    for path in (tmp_path / "open" / "file", tmp_path / "shut"):
        path.touch()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), str(version)],
        env={"PYTHONPATH": str(AGENT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["1", "0", "0", "1" if version < 4 else "0"]


def test_a_kernel_without_it_has_version_0(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(landlock, "_syscall", lambda: lambda *_: -1)
    assert landlock.abi() == 0
