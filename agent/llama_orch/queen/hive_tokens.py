"""The tokens of each hive as the controller made them: `secrets/hives/NAME`, and for its workers `inference/NAME`."""

from __future__ import annotations

from pathlib import Path

from llama_orch.web.auth import Token, read_token


class HiveTokens:
    """Reads tokens at each question, so that one that was just made or changed counts at once."""

    def __init__(self, secrets: Path) -> None:
        self._folder = secrets / "hives"
        self._inference = secrets / "inference"

    def token(self, node_name: str) -> Token | None:
        """The token of a hive; None where none was made yet. Raises WrongTokenFile."""
        path = self._path(node_name)
        return read_token(path) if path is not None and path.exists() else None

    def forget(self, node_name: str) -> None:
        """Delete the tokens of a hive that is gone."""
        path = self._path(node_name)
        if path is not None:
            path.unlink(missing_ok=True)
            (self._inference / node_name).unlink(missing_ok=True)

    def _path(self, node_name: str) -> Path | None:
        # A person's inventory may name a host as they like; another secret must not be sent to it as its token.
        plain = "/" not in node_name and not node_name.startswith(".")
        return self._folder / node_name if plain else None
