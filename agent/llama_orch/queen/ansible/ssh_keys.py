"""The queen's ssh key pair, made at first start, and the host keys that first contact recorded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llama_orch.base import files
from llama_orch.contract.patterns import HOST_KEY
from llama_orch.contract.queen import HostKey, SshKey

FIRST_CONTACT = "first-contact"
# Where a pair is made: what a queen that was killed then leaves is deleted by the next one.
MAKING = ".making-"

_PREFERRED = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


class NoSshKey(Exception):
    """The key pair can neither be read nor made; the message says why."""


def ensure_key_pair(private: Path) -> None:
    """Make an ed25519 key pair unless there is one, and its public half where it is not what it should be.

    Raises NoSshKey, OSError.
    """
    public = private.with_name(private.name + ".pub")
    private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not private.exists():
        with tempfile.TemporaryDirectory(prefix=MAKING, dir=private.parent) as folder:
            made = Path(folder) / "key"
            _keygen("-q", "-t", "ed25519", "-N", "", "-C", f"llama-orch-queen@{socket.gethostname()}", "-f", str(made))
            made.with_name("key.pub").rename(public)
            made.rename(private)
    private.chmod(0o600)
    try:
        public_key(private)
    except NoSshKey:
        files.write_text(public, _keygen("-y", "-f", str(private)), 0o644)


def public_key(private: Path) -> SshKey:
    """The public half. Raises NoSshKey."""
    try:
        text = private.with_name(private.name + ".pub").read_text(encoding="ascii").strip()
        return SshKey(public_key=text, fingerprint=_fingerprint(text.split()[1]))
    except (OSError, UnicodeDecodeError, IndexError, binascii.Error) as error:
        raise NoSshKey(f"the queen's public ssh key cannot be read: {error}") from None


class NoHostKey(Exception):
    """What was given as a host key is none; the message says what was expected."""


def host_key_fingerprint(given: str) -> str:
    """The fingerprint of a host key that was given as fingerprint or as public key line. Raises NoHostKey."""
    expected = "expected SHA256:… as ssh-keygen -lf shows it, or the line of a file ssh_host_ed25519_key.pub"
    if not re.fullmatch(HOST_KEY, given):
        raise NoHostKey(expected)
    if given.startswith("SHA256:"):
        return given
    try:
        return _fingerprint(given.split()[1])
    except binascii.Error:
        raise NoHostKey(expected) from None


@dataclass(frozen=True)
class RecordedKey:
    """One key of a host, and the line of known_hosts that it stands in."""

    names: str
    type: str
    blob: str
    comment: str

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it."""
        return _fingerprint(self.blob)

    @property
    def confirmed(self) -> bool:
        """Whether it is more than what the host showed at first contact."""
        return self.comment != FIRST_CONTACT


class KnownHosts:
    """The project's known_hosts file: people may write into it, the queen adds hosts and takes them out.

    What a host showed at first contact, and nobody confirmed, has `FIRST_CONTACT` as comment, which ssh passes over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Threads write it, one at a time.
        self._changing = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, list[RecordedKey]] = {}

    def key_of(self, ssh_host: str, ssh_port: int) -> HostKey | None:
        """The recorded key of a host, or None before first contact."""
        self.look()
        best = self.best_of(ssh_host, ssh_port)
        return best and HostKey(type=best.type, fingerprint=best.fingerprint)

    def best_of(self, ssh_host: str, ssh_port: int) -> RecordedKey | None:
        """The key of a host that ssh likes best, as the file was at the last look; no disk is touched."""
        found = self._keys.get(entry_of(ssh_host, ssh_port), [])
        return min(found, key=lambda key: _PREFERRED.index(key.type), default=None)

    def keys_of(self, entry: str) -> list[RecordedKey]:
        """All keys that are recorded under a name of known_hosts."""
        self.look()
        return self._keys.get(entry, [])

    def look(self) -> None:
        """Read the file again where it changed. May be called by any thread."""
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if self._stamp != stamp:
                self._keys = _parse(self.path.read_text(encoding="utf-8", errors="replace"))
                self._stamp = stamp
        except OSError:
            self._keys, self._stamp = {}, None

    def add(self, keys: Iterable[RecordedKey], *, confirmed: bool) -> None:
        """Record keys that a host shows. One that has keys already gets no others: it may be changing them.

        On the disk when this returns, as what the other two change is. Raises OSError.
        """
        mark = "" if confirmed else f" {FIRST_CONTACT}"
        with self._changing:
            new = [key for key in keys if not any(self.keys_of(name) for name in key.names.lower().split(","))]
            text = "".join(f"{key.names} {key.type} {key.blob}{mark}\n" for key in new)
            before = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            files.write_text(self.path, before + ("\n" if before and not before.endswith("\n") else "") + text)

    def confirm(self, entry: str, fingerprint: str) -> None:
        """Take the mark of first contact from a host's key. Raises OSError."""
        with self._changing:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            before = list(lines)
            for at, text in enumerate(lines):
                if any(key.fingerprint == fingerprint for key in _parse(text).get(entry, [])):
                    lines[at] = text.rstrip().removesuffix(" " + FIRST_CONTACT) + "\n"
            if lines != before:
                files.write_text(self.path, "".join(lines))

    def forget(self, ssh_host: str, ssh_port: int) -> None:
        """Take a host's keys out, so that the next contact is the first. Raises OSError."""
        with self._changing:
            if self.key_of(ssh_host, ssh_port) is None:
                return
            entry = entry_of(ssh_host, ssh_port)
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            files.write_text(self.path, "".join(ln for ln in lines if ln.split(" ", 1)[0].lower() != entry))


def read_keys(path: Path) -> list[RecordedKey]:
    """All keys in a known_hosts file; none where there is no file."""
    try:
        found = _parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return []
    return list(dict.fromkeys(key for keys in found.values() for key in keys))


def entry_of(ssh_host: str, ssh_port: int) -> str:
    """The name under which ssh records a host."""
    host = ssh_host.lower()
    return host if ssh_port == 22 else f"[{host}]:{ssh_port}"


def _parse(text: str) -> dict[str, list[RecordedKey]]:
    found: dict[str, list[RecordedKey]] = {}
    for line in text.splitlines():
        parts = line.split(maxsplit=3)
        if len(parts) < 3 or parts[0].startswith(("#", "@")) or parts[1] not in _PREFERRED:
            continue
        key = RecordedKey(parts[0], parts[1], parts[2], parts[3].strip() if len(parts) > 3 else "")
        try:
            _fingerprint(key.blob)
        except binascii.Error:
            continue
        for name in key.names.lower().split(","):
            found.setdefault(name, []).append(key)
    return found


def _fingerprint(blob: str) -> str:
    digest = hashlib.sha256(base64.b64decode(blob, validate=True)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _keygen(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], capture_output=True, text=True, timeout=30, check=True, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise NoSshKey("ssh-keygen is not installed: install openssh-client") from None
    except subprocess.CalledProcessError as error:
        raise NoSshKey(f"ssh-keygen failed: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise NoSshKey("ssh-keygen did not end within 30 s") from None
    return done.stdout
