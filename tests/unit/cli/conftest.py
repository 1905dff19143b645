from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from llama_orch.cli import connection
from llama_orch.cli.main import app
from tests.unit.cli.services import INFERENCE_TOKEN, TOKEN, Fleet, serve_fleet

Command = Callable[..., Awaitable[Result]]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with serve_fleet() as served:
        yield served


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A project's secrets, with the tokens of the served fleet."""
    (tmp_path / "playbooks").mkdir()
    folder = tmp_path / "secrets"
    (folder / "hives").mkdir(parents=True)
    for name, token in (("api-token", TOKEN), ("inference-token", INFERENCE_TOKEN), ("hives/n1", TOKEN)):
        (folder / name).write_text(token + "\n")
        (folder / name).chmod(0o600)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without any `up` around it, on a machine without secrets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "SYSTEM_SECRETS", tmp_path / "etc")
    monkeypatch.setattr(connection, "PROJECT_SECRETS", tmp_path / "opt")
    return tmp_path


@pytest.fixture
async def command(fleet: Fleet, secrets: Path, elsewhere: Path) -> Command:
    """Runs the command in a thread of its own, as it has an event loop of its own."""
    environment = {
        "LLAMA_ORCH_QUEEN_URL": fleet.urls["queen"],
        "LLAMA_ORCH_HIVE_URL": fleet.urls["hive"],
        "LLAMA_ORCH_TOKEN_FILE": str(secrets / "api-token"),
        "LLAMA_ORCH_INFERENCE_TOKEN_FILE": str(secrets / "inference-token"),
    }

    async def run(*arguments: str, stdin: str | None = None, env: dict[str, str | None] | None = None) -> Result:
        runner = CliRunner(env={**environment, **(env or {})})
        return await asyncio.wait_for(asyncio.to_thread(runner.invoke, app, list(arguments), input=stdin), 30)

    return run
