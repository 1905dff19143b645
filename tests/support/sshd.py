"""An OpenSSH server on an unprivileged loopback port, as the user who runs the tests, with keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.support.ports import free_port

PROGRAM = shutil.which("sshd") or "/usr/sbin/sshd"


def missing() -> str:
    """Why there can be no server here, or nothing."""
    return "" if Path(PROGRAM).exists() else "no sshd here: install openssh-server, or as root run `make host-packages`"


class Sshd:
    """One server; `new_host_key` makes it look like another host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.user = getpass.getuser()
        self.authorized = folder / "authorized_keys"
        self.authorized.touch(mode=0o600)
        self._host_key = folder / "host_key"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        if not self._host_key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._host_key)], check=True)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self._host_key}\n"
            f"AuthorizedKeysFile {self.authorized}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
        )
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, "-D", "-e", "-f", str(config)], stderr=log)
        deadline = time.monotonic() + 10
        while "Server listening" not in self.log():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def new_host_key(self) -> None:
        """Restart with another host key."""
        self.stop()
        self._host_key.unlink()
        self._host_key.with_suffix(".pub").unlink()
        self.start()

    def fingerprint(self) -> str:
        """Its host key as ssh-keygen shows it."""
        command = ["ssh-keygen", "-lf", f"{self._host_key}.pub"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None
        (self.folder / "sshd.log").write_text("")

    def log(self) -> str:
        """What it wrote."""
        path = self.folder / "sshd.log"
        return path.read_text(errors="replace") if path.exists() else ""
