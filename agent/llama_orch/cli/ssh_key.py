"""`llama-orch ssh-key`: what a host must know to let the queen in."""

from __future__ import annotations

from llama_orch.contract.queen import SshKey

from .connection import Connection, JsonOption, QueenOption, TokenFileOption
from .output import line, print_json
from .running import run


def ssh_key(queen: QueenOption = None, token_file: TokenFileOption = None, as_json: JsonOption = False) -> None:
    """Show the queen's public ssh key, for a host's authorized_keys."""

    async def work() -> SshKey:
        async with Connection(queen, None, token_file).open_queen() as client:
            return await client.ssh_key()

    key = run(work())
    if as_json:
        print_json(key)
    else:
        line(key.public_key)
