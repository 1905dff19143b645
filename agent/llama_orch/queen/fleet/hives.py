"""Asks one hive who it is and how it does: each side proves itself, within a time-out, by the typed client."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, TypeVar

import aiohttp

from llama_orch.base.tokens import WrongTokenFile
from llama_orch.client import Hive, NoAnswer, NotTheService
from llama_orch.client.proving import ProvingConnector
from llama_orch.contract.common import Problem
from llama_orch.contract.errors import ApiError, UpstreamFailed
from llama_orch.contract.queen import NodeHive

from ..inventory.view import Host
from .hive_tokens import HiveTokens

M = TypeVar("M")
# What a hive tells of itself: eight GPUs with all that is wrong with them are some 20 kB.
MOST_BYTES = 1024 * 1024
MOST_CHARACTERS = 300


class HiveSilent(Exception):
    """The hive did not answer as it should; `problem` says how."""

    def __init__(self, code: str, message: str, what_to_do: str) -> None:
        super().__init__(message)
        self.problem = Problem(code=code, message=message, what_to_do=what_to_do)


class NoTokenYet(Exception):
    """No token was made for this hive: nobody has provisioned it."""


class Hives(Protocol):
    """What asks hives."""

    async def ask(self, host: Host) -> NodeHive:
        """What the hive on `host` tells. Raises HiveSilent, NoTokenYet."""
        ...


class HiveClient:
    """Asks hives over the network; holds the connections to them."""

    def __init__(self, tokens: HiveTokens, timeout_s: float) -> None:
        self._tokens = tokens
        self._timeout_s = timeout_s
        self._session = aiohttp.ClientSession(
            connector=ProvingConnector("hive", limit=64, keepalive_timeout=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def ask(self, host: Host) -> NodeHive:
        """What the hive on `host` tells. Raises HiveSilent, NoTokenYet."""
        url = base_url(host)
        try:
            token = self._tokens.token(host.name)
        except WrongTokenFile as error:
            raise HiveSilent("hive_token_unusable", f"the hive's token: {error}", "Mend the token file.") from None
        if token is None:
            raise NoTokenYet(host.name)
        hive = Hive(url, token.reveal(), timeout=self._timeout_s, most_bytes=MOST_BYTES, session=self._session)
        info = await _told(hive.info(), url)
        if info.hive_id != host.name:
            raise HiveSilent(
                "wrong_hive",
                f"{url} answers as hive '{info.hive_id}', not as '{host.name}'",
                "Two nodes point to one machine, or hive_address is wrong.",
            )
        health = await _told(hive.health(), url)
        devices = await _told(hive.devices(), url)
        return NodeHive(hive_id=info.hive_id, version=info.version, url=url, workers=health.workers, devices=devices)


async def _told(asked: Awaitable[M], url: str) -> M:
    try:
        return await asked
    except NotTheService:
        raise HiveSilent(
            "hive_not_proven",
            f"what answers at {url} does not prove that it knows this hive's token, so nothing was sent to it",
            "Provision the node again: that gives the hive its token. If it stays, look at what listens there.",
        ) from None
    except NoAnswer as error:
        raise HiveSilent(
            "hive_unreachable",
            _short(error),
            "Look at the service llama-orch-hive on the host, and at firewalls in between.",
        ) from None
    except UpstreamFailed as error:
        raise HiveSilent("hive_unhealthy", _short(error), "Look at what runs on that port.") from None
    except ApiError as error:
        message = f"{url} answered {error.status}: {_short(error)}"
        raise HiveSilent("hive_unhealthy", message, "Read the hive's log on the host.") from None


def _short(error: ApiError) -> str:
    # What is asked without a token may be answered by anybody.
    return " ".join(error.message.split())[:MOST_CHARACTERS]


def base_url(host: Host) -> str:
    """Where the hive of `host` listens."""
    address = f"[{host.hive_address}]" if ":" in host.hive_address else host.hive_address
    return f"http://{address}:{host.hive_port}"
