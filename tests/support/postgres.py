"""A PostgreSQL of the tests' own: Debian's programs and user, a folder of its own, loopback, nothing of it kept."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from .ports import free_port

PASSWORD = "a password: of @ the / tests"
START_S = 60.0


def programs() -> Path | None:
    """Where the newest of Debian's versions has its programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def missing() -> str:
    """Why there can be none here; empty where there can."""
    if programs() is None:
        return "needs PostgreSQL: apt-get install postgresql"
    if os.getuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        return "needs the user postgres, which the package postgresql makes"
    return ""


class Postgres:
    """A server with one role, `queen`, and databases that are made one for each test."""

    def __init__(self) -> None:
        self._bin = programs()
        # PostgreSQL refuses to run as root, and another user sees nothing of pytest's folders.
        self._user = "postgres" if os.getuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="llama-orch-postgres-", dir="/tmp"))
        if self._user:
            shutil.chown(self.folder, self._user, self._user)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if self._user:
            shutil.chown(password, self._user, self._user)
        locale = ("--encoding=UTF8", "--locale=C.UTF-8")
        self._run("initdb", "-D", self._data, "-U", "queen", "--auth=scram-sha-256", f"--pwfile={password}", *locale)
        self.start()

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        assert self._bin
        # No test loses power: what it writes need not be on the disk.
        options = (f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}",
                   "fsync=off", "log_statement=all")  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *(f"-c{option}" for option in options)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self._user, group=self._user,
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while subprocess.run([self._bin / "pg_isready", "-qh127.0.0.1", f"-p{self.port}"], check=False).returncode:
            assert self._process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, with all its connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_S)
            self._process = None

    def close(self) -> None:
        """End it and delete what it wrote."""
        self.stop()
        shutil.rmtree(self.folder)

    def database(self) -> str:
        """The URL of a new database, without the password."""
        self._databases += 1
        name = f"queen{self._databases}"
        self._run("createdb", *self._there, name)
        return f"postgresql+psycopg://queen@127.0.0.1:{self.port}/{name}"

    def dump(self, url: str) -> str:
        """All that a database holds, as SQL."""
        return self._run("pg_dump", *self._there, url.rpartition("/")[2])

    def log(self) -> str:
        """What it wrote: every statement."""
        return (self.folder / "log").read_text(errors="replace")

    @property
    def _there(self) -> tuple[str, ...]:
        return ("-h127.0.0.1", f"-p{self.port}", "-Uqueen")

    def _run(self, program: str, *arguments: str) -> str:
        assert self._bin
        done = subprocess.run(
            [self._bin / program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=120, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "PGPASSWORD": PASSWORD}, cwd="/",
            user=self._user, group=self._user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout
