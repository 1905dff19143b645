"""`llama-orch-queen --config FILE`: checks everything that can stop the start, then serves until SIGTERM."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

from llama_orch.base.tokens import Token, WrongTokenFile, make_token_file, read_token
from llama_orch.web import correlation, serve
from llama_orch.web.settings import stop

from . import app
from .ansible import ssh_keys
from .jobs import executor_lock
from .settings import PROGRAM, QueenSettings, load
from .store import damage, schema
from .store.database import located


def main() -> None:
    """Run the queen in this process."""
    settings = load()
    os.umask(0o077)
    correlation.configure_logging(logging.INFO)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    token = prepare(settings)
    try:
        lock = executor_lock.hold(settings.data)
    except executor_lock.AnotherQueen as error:
        stop(PROGRAM, f"{error}; stop it, or give this one another data_dir")
    with lock:
        try:
            database = located(settings.store_url, settings.database_password())
        except WrongTokenFile as error:
            stop(PROGRAM, f"'database_password_file': {error}")
        except ValueError as error:
            stop(PROGRAM, f"'database_url' {error}")
        if refusal := schema.refusal(database):
            stop(PROGRAM, refusal)
        listener = serve.listen(PROGRAM, settings.host, settings.port)
        serve.run(app.build(settings, token, database), listener)


def prepare(settings: QueenSettings) -> Token:
    """Make folders, key and token where they are missing. Ends the process with a message where that fails."""
    if sqlite3.sqlite_version_info < damage.LEAST_SQLITE:
        least = ".".join(map(str, damage.LEAST_SQLITE))
        stop(
            PROGRAM,
            f"this Python's SQLite is {sqlite3.sqlite_version} and needs to be {least}: run the queen by Python 3.11, "
            "which does with the older one, or by a Python that brings a newer one",
        )
    if not settings.project.is_dir():
        stop(PROGRAM, f"'project_dir' is {settings.project}, which is no folder: give the checkout's or its copy's")
    try:
        for folder in (settings.data, settings.secrets):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ssh_keys.ensure_key_pair(settings.ssh_key)
        return _token(settings)
    except OSError as error:
        stop(PROGRAM, f"{error.filename}: {error.strerror}; check 'data_dir' and 'secrets_dir'")
    except (ssh_keys.NoSshKey, WrongTokenFile) as error:
        stop(PROGRAM, str(error))


def _token(settings: QueenSettings) -> Token:
    if settings.api_token_file is not None:
        return read_token(settings.api_token_file)
    credentials = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "api-token")
    if credentials.exists():
        return read_token(credentials)
    made = settings.secrets / "api-token"
    make_token_file(made)
    return read_token(made)
