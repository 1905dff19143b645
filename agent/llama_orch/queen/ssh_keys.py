"""The queen's ssh key pair, made at first start, and the host keys that first contact recorded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import socket
import subprocess
import tempfile
from pathlib import Path

from llama_orch.contract.queen import HostKey, SshKey

_PREFERRED = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


class NoSshKey(Exception):
    """The key pair can neither be read nor made; the message says why."""


def ensure_key_pair(private: Path) -> None:
    """Make an ed25519 key pair unless there is one. Raises NoSshKey."""
    public = private.with_name(private.name + ".pub")
    private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not private.exists():
        with tempfile.TemporaryDirectory(dir=private.parent) as folder:
            made = Path(folder) / "key"
            _keygen("-q", "-t", "ed25519", "-N", "", "-C", f"llama-orch-queen@{socket.gethostname()}", "-f", str(made))
            made.with_name("key.pub").rename(public)
            made.rename(private)
    if not public.exists():
        public.write_text(_keygen("-y", "-f", str(private)), encoding="ascii")
    private.chmod(0o600)


def public_key(private: Path) -> SshKey:
    """The public half. Raises NoSshKey."""
    try:
        text = private.with_name(private.name + ".pub").read_text(encoding="ascii").strip()
        return SshKey(public_key=text, fingerprint=_fingerprint(text.split()[1]))
    except (OSError, UnicodeDecodeError, IndexError, binascii.Error) as error:
        raise NoSshKey(f"the queen's public ssh key cannot be read: {error}") from None


class KnownHosts:
    """The project's known_hosts file: ssh appends to it, the queen reads it and takes hosts out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: dict[str, HostKey] = {}

    def key_of(self, ssh_host: str, ssh_port: int) -> HostKey | None:
        """The recorded key of a host, or None before first contact."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        if self._stamp != (status.st_mtime_ns, status.st_size):
            self._keys = _parse(self.path.read_text(encoding="utf-8", errors="replace"))
            self._stamp = (status.st_mtime_ns, status.st_size)
        return self._keys.get(_entry(ssh_host, ssh_port))

    def forget(self, ssh_host: str, ssh_port: int) -> None:
        """Take a host's keys out, so that the next contact is the first."""
        if self.key_of(ssh_host, ssh_port) is None:
            return
        entry = _entry(ssh_host, ssh_port)
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(ln for ln in lines if ln.split(" ", 1)[0].lower() != entry), encoding="utf-8")
        os.chmod(temporary, 0o600)  # noqa: PTH101  the same mode whatever the umask was
        temporary.replace(self.path)


def _entry(ssh_host: str, ssh_port: int) -> str:
    host = ssh_host.lower()
    return host if ssh_port == 22 else f"[{host}]:{ssh_port}"


def _parse(text: str) -> dict[str, HostKey]:
    found: dict[str, HostKey] = {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) < 3 or parts[0].startswith(("#", "@")) or parts[1] not in _PREFERRED:
            continue
        for name in parts[0].lower().split(","):
            known = found.get(name)
            if known is None or _PREFERRED.index(parts[1]) < _PREFERRED.index(known.type):
                try:
                    found[name] = HostKey(type=parts[1], fingerprint=_fingerprint(parts[2]))
                except binascii.Error:
                    continue
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
