"""Bearer tokens: read from files that nobody else may read, compared in constant time, never logged."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

MIN_TOKEN_LENGTH = 16


class WrongTokenFile(Exception):
    """The token file cannot be used; the message says why and what to do."""


class Token:
    """A secret that shows itself nowhere: neither in repr nor in str.

    `also` is one that is taken as well, and never shown to anybody as this one.
    """

    def __init__(self, value: str, also: Token | None = None) -> None:
        if len(value) < MIN_TOKEN_LENGTH or not value.isascii() or not value.isprintable() or " " in value:
            raise WrongTokenFile(
                f"the token must be at least {MIN_TOKEN_LENGTH} printable ASCII characters without spaces"
            )
        self._value = value
        self._also = also

    def matches(self, given: str | None) -> bool:
        """Whether `given` is this token, in time that does not depend on where they differ."""
        # Both are always compared: the time tells nothing of which it was.
        other = self._also is not None and self._also.matches(given)
        # What is not ASCII may hold what cannot be encoded: bytes of a header that are no UTF-8.
        this = given is not None and given.isascii() and hmac.compare_digest(given.encode(), self._value.encode())
        return this or other

    def reveal(self) -> str:
        """The secret itself, for the one header or descriptor that must carry it."""
        return self._value

    def reveal_all(self) -> list[str]:
        """The secret itself, and behind it those that are taken as well."""
        return [self._value, *(self._also.reveal_all() if self._also else [])]

    def __repr__(self) -> str:
        return "Token(***)"


def read_token(path: Path) -> Token:
    """Read a token file. Raises WrongTokenFile where it is missing, too open or too short."""
    text = read_secret(path)
    try:
        return Token(text)
    except WrongTokenFile as error:
        raise WrongTokenFile(f"{path}: {error}") from None


def read_secret(path: Path) -> str:
    """Read a file that nobody else may read. Raises WrongTokenFile where it is missing or too open.

    Under systemd's `$CREDENTIALS_DIRECTORY` an ACL shows as group bits, so the mode is not judged there.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongTokenFile(f"cannot read the file {path}: {error}") from None
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    under_systemd = credentials is not None and path.resolve().is_relative_to(Path(credentials).resolve())
    if not under_systemd and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise WrongTokenFile(f"{path} is open to group or others: run chmod 600 {path}")
    return text


def make_token_file(path: Path) -> None:
    """Write a new random token to `path` (0600, folder 0700) unless a file is there already."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
