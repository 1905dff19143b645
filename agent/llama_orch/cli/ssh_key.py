"""`llama-orch ssh-key`: what goes into a host's authorized_keys before it is registered."""

from __future__ import annotations

from llama_orch.contract.queen import SshKey

from .connection import Connection, JsonOption, QueenOption, TokenFileOption
from .output import line, print_json
from .running import run


def ssh_key(*, queen: QueenOption = None, token_file: TokenFileOption = None, as_json: JsonOption = False) -> None:
    """Print the queen's public ssh key, one line for the login user's authorized_keys."""

    async def work() -> SshKey:
        async with Connection(queen, None, token_file).open_queen() as client:
            return await client.ssh_key()

    found = run(work())
    if as_json:
        print_json(found)
    else:
        line(found.public_key)
