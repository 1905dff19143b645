"""`llama-orch-hive`: settings, tokens, folders, then the application."""

from __future__ import annotations

import os
from pathlib import Path

from llama_orch.base import locks, tokens
from llama_orch.web import serve
from llama_orch.web.correlation import configure_logging
from llama_orch.web.settings import load_or_exit, stop

from . import app
from .settings import ENV_PREFIX, PROGRAM, HiveSettings, find_token


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = load_or_exit(HiveSettings, program=PROGRAM, env_prefix=ENV_PREFIX)
    configure_logging()
    os.umask(0o077)
    settings = _prepare_folders(settings)
    try:
        api_token = _needed("api_token_file", find_token(settings.api_token_file, "api-token"))
        inference_token = find_token(settings.inference_token_file, "inference-token")
        fleet_token = find_token(settings.fleet_inference_token_file, "fleet-inference-token")
        hub_token = find_token(settings.hub_token_file, "hub-token")
    except tokens.WrongTokenFile as error:
        stop(PROGRAM, str(error))
    if inference_token is not None and fleet_token is not None:
        inference_token = tokens.Token(inference_token.reveal(), also=fleet_token)
    inference_token = _needed("inference_token_file", inference_token or fleet_token)
    lock = _only_one(settings.state_dir)
    listener = serve.listen(PROGRAM, settings.host, settings.port)
    built = app.build(settings, api_token=api_token, inference_token=inference_token, hub_token=hub_token)
    serve.run(built, listener)
    os.close(lock)


def _needed(setting: str, token: tokens.Token | None) -> tokens.Token:
    """The token, as nothing is served without one, on loopback either: web pages and other users reach that too."""
    if token is None:
        stop(PROGRAM, f"'{setting}' is not set: name a file of mode 0600 with a token of at least 16 characters")
    return token


def _prepare_folders(settings: HiveSettings) -> HiveSettings:
    """Make the folders and their paths absolute, as processes are recognised by them. Ends the process with 2."""
    paths: dict[str, Path] = {}
    for key in ("state_dir", "models_dir", "log_dir"):
        path: Path = getattr(settings, key)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            stop(PROGRAM, f"cannot make the folder of '{key}', {path}: {error.strerror}; choose another")
        paths[key] = path.resolve()
        if not os.access(paths[key], os.W_OK | os.X_OK):
            stop(PROGRAM, f"the folder of '{key}', {path}, cannot be written by this user: chown it")
    return settings.model_copy(update=paths)


def _only_one(state_dir: Path) -> int:
    """Hold the state folder for this process: two agents would start every worker twice."""
    descriptor = os.open(state_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not locks.take(descriptor):
        stop(PROGRAM, f"another hive agent runs with state_dir {state_dir}: stop it, or choose another folder")
    return descriptor
