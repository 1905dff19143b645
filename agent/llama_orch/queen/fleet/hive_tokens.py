"""The tokens of each hive as the controller made them: `secrets/hives/NAME`, and for its workers `inference/NAME`.

Tokens go with their machine. Beside the first `.NAME.host-key` says by which ssh host key the queen knew the machine
that she gave them to.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from llama_orch.base import files
from llama_orch.base.tokens import Token, read_token

# What stands beside a token.
NOTE = ".{name}.host-key"


class HiveTokens:
    """Reads tokens at each question, so that one that was just made or changed counts at once."""

    def __init__(self, secrets: Path) -> None:
        self._folder = secrets / "hives"
        self._inference = secrets / "inference"

    def token(self, node_name: str) -> Token | None:
        """The token of a hive; None where none was made yet. Raises WrongTokenFile."""
        path = self._path(node_name)
        return read_token(path) if path is not None and path.exists() else None

    def give_to(self, node_name: str, host_key: str) -> bool:
        """Before a machine gets the hive's tokens: delete those that another machine got. Answers whether it did.

        `host_key` is the fingerprint that the machine has shown. The next run makes new tokens. Raises OSError.
        """
        path = self._path(node_name)
        if path is None:
            return False
        note = self._note(path)
        given_to = None
        with contextlib.suppress(FileNotFoundError, UnicodeDecodeError):
            given_to = note.read_text(encoding="ascii").strip()
        another = given_to is not None and given_to != host_key and path.exists()
        if another:
            self._delete(path)
        if given_to != host_key:
            note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_text(note, host_key + "\n")
        return another

    def forget(self, node_name: str) -> None:
        """Delete the tokens of a hive that is gone, or that is not here yet."""
        path = self._path(node_name)
        if path is not None:
            self._delete(path)
            self._note(path).unlink(missing_ok=True)

    def _delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        (self._inference / path.name).unlink(missing_ok=True)

    @staticmethod
    def _note(path: Path) -> Path:
        return path.with_name(NOTE.format(name=path.name))

    def _path(self, node_name: str) -> Path | None:
        # A person's inventory may name a host as they like; another secret must not be sent to it as its token.
        plain = "/" not in node_name and not node_name.startswith(".")
        return self._folder / node_name if plain else None
