"""Where queen and hives are, and with which token: option, environment, a running `up`, this machine's own."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import BaseModel, ValidationError

from llama_orch.base import processes, tokens
from llama_orch.client import Hive, Queen
from llama_orch.contract import patterns

SYSTEM_SECRETS = Path("/etc/llama-orch/secrets")
PROJECT_SECRETS = Path("/opt/llama-orch/project/secrets")
# Not localhost: that may be ::1, where any user can listen while the service has all of IPv4, and pass its proof on.
DEFAULT_QUEEN = "http://127.0.0.1:8080"
DEFAULT_HIVE = "http://127.0.0.1:8081"

QueenOption = Annotated[
    str | None,
    typer.Option("--queen", metavar="URL", envvar="LLAMA_ORCH_QUEEN_URL", help="Address of the queen."),
]
HiveOption = Annotated[
    str | None,
    typer.Option("--hive", metavar="URL|NODE", envvar="LLAMA_ORCH_HIVE_URL", help="A hive's address, or its node."),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", envvar="LLAMA_ORCH_TOKEN_FILE", help="File with the api-token."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Unusable(Exception):
    """What the user gave cannot be used; the message says what to give. Ends the command with status 2."""


class LocalUp(BaseModel):
    """What a running `llama-orch up` wrote into its folder: which process it is and how to reach its services."""

    pid: int
    start_time: int
    boot_id: str
    queen_url: str
    hive_url: str | None
    api_token_file: Path
    inference_token_file: Path
    secrets_dir: Path

    def lives(self) -> bool:
        """Whether that process still runs."""
        return self.boot_id == processes.boot_id() and processes.start_time(self.pid) == self.start_time


def read_local_up(folder: Path) -> LocalUp | None:
    """The `up` that runs in `folder`, if one does."""
    try:
        found = LocalUp.model_validate_json((folder / "connection.json").read_bytes())
    except (OSError, ValidationError):
        return None
    return found if found.lives() else None


def find_local_up() -> LocalUp | None:
    """The `up` that runs in this folder's checkout, or in one around it; else the fleet of test hosts there."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        for home in (folder / ".llama-orch", folder / ".llama-orch" / "fleet"):
            if (found := read_local_up(home)) is not None:
                return found
    return None


@dataclass(frozen=True)
class Connection:
    """The connection options of one command, as given; `None` is not given."""

    queen: str | None = None
    hive: str | None = None
    token_file: Path | None = None

    def open_queen(self) -> Queen:
        """A client of the queen. Raises Unusable where there is no usable token for it."""
        up = find_local_up()
        url = _checked(self.queen or (up.queen_url if up else DEFAULT_QUEEN), "--queen")
        return Queen(url, self._token(url, up))

    async def open_hive(self) -> Hive:
        """A client of the hive; a node's name is resolved by the queen. Raises Unusable or ApiError."""
        up = find_local_up()
        if self.hive and "://" not in self.hive:
            return await self._open_node(self.hive, up)
        url = _checked(self.hive or (up.hive_url if up else None) or DEFAULT_HIVE, "--hive")
        return Hive(url, self._token(url, up))

    async def _open_node(self, name: str, up: LocalUp | None) -> Hive:
        if not re.fullmatch(patterns.NODE_NAME, name):
            raise Unusable(f"--hive is {name!r}: give a node's name or an address such as {DEFAULT_HIVE}")
        async with self.open_queen() as queen:
            node = await queen.get_node(name)
        if node.hive is None:
            raise Unusable(
                f"node {name} is {node.status} and its hive has not answered yet: "
                f"see 'llama-orch nodes list', provision it with 'llama-orch nodes provision {name}'"
            )
        files = [folder / "hives" / name for folder in _secrets_folders(up)]
        for file in files:
            if _readable(file):
                return Hive(node.hive.url, read_token(file))
        if self.token_file:
            return Hive(node.hive.url, read_token(self.token_file))
        raise Unusable(
            f"no token for node {name}: looked for {', '.join(map(str, files))}; "
            "run this in the project folder on the controller, or give --token-file"
        )

    def _token(self, url: str, up: LocalUp | None) -> str:
        if self.token_file:
            return read_token(self.token_file)
        if up and url in (up.queen_url, up.hive_url):
            return read_token(up.api_token_file)
        file = SYSTEM_SECRETS / "api-token"
        # A token opens this machine alone; sent elsewhere it would only be given away.
        if is_local(url):
            if _readable(file):
                return read_token(file)
            raise Unusable(
                f"no token for {url}: {file} cannot be read and no 'llama-orch up' runs here; "
                "give --token-file FILE or set LLAMA_ORCH_TOKEN_FILE"
            )
        raise Unusable(f"no token for {url}: give --token-file FILE or set LLAMA_ORCH_TOKEN_FILE")


def inference_token(given: Path | None, hive: str | None = None) -> str:
    """The token for a worker: given, of the running `up`, of its hive where that is a node's name, of the fleet."""
    if given:
        return read_token(given)
    up = find_local_up()
    files = [up.inference_token_file] if up else []
    if hive and re.fullmatch(patterns.NODE_NAME, hive):
        files = [folder / "inference" / hive for folder in _secrets_folders(up)] + files
    files += [folder / "inference-token" for folder in (*_secrets_folders(up), SYSTEM_SECRETS)]
    for file in dict.fromkeys(files):
        if _readable(file):
            return read_token(file)
    raise Unusable(
        f"no inference token: looked for {', '.join(map(str, dict.fromkeys(files)))}; "
        "give --inference-token-file FILE or set LLAMA_ORCH_INFERENCE_TOKEN_FILE"
    )


def read_token(file: Path) -> str:
    """The token in `file`. Raises Unusable where it is missing, too short or open to others."""
    try:
        return tokens.read_token(file).reveal()
    except tokens.WrongTokenFile as error:
        raise Unusable(str(error)) from None


def is_local(url: str) -> bool:
    """Whether what is sent to `url` stays on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secrets_folders(up: LocalUp | None) -> Iterator[Path]:
    if up:
        yield up.secrets_dir
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "playbooks").is_dir():
            yield folder / "secrets"
            break
    yield PROJECT_SECRETS


def _readable(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:
        return False


def _checked(url: str, option: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unusable(f"{option} is {url!r}: expected an address such as http://queen.example.com:8080")
    return url.rstrip("/")
