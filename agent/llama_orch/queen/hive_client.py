"""Asks one hive who it is and how it does: each side proves itself, within a time-out, in the contract's types."""

from __future__ import annotations

from typing import TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from llama_orch.client.bounded import read_whole
from llama_orch.client.proving import NotProven, ProvingConnector
from llama_orch.contract.common import HiveHealth, Problem
from llama_orch.contract.devices import Devices
from llama_orch.contract.hive import HiveInfo
from llama_orch.contract.operations import DEVICES, HIVE_HEALTH, HIVE_INFO
from llama_orch.contract.queen import NodeHive
from llama_orch.web.auth import Token, WrongTokenFile

from .hive_tokens import HiveTokens
from .inventory import Host

M = TypeVar("M", bound=BaseModel)


class HiveSilent(Exception):
    """The hive did not answer as it should; `problem` says how."""

    def __init__(self, code: str, message: str, what_to_do: str) -> None:
        super().__init__(message)
        self.problem = Problem(code=code, message=message, what_to_do=what_to_do)


class NoTokenYet(Exception):
    """No token was made for this hive: nobody has provisioned it."""


class HiveClient:
    """Holds the connections to hives."""

    def __init__(self, tokens: HiveTokens, timeout_s: float) -> None:
        self._tokens = tokens
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
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
        info = await self._get(url, HIVE_INFO.path, HiveInfo, token)
        if info.hive_id != host.name:
            raise HiveSilent(
                "wrong_hive",
                f"{url} answers as hive '{info.hive_id}', not as '{host.name}'",
                "Two nodes point to one machine, or hive_address is wrong.",
            )
        health = await self._get(url, HIVE_HEALTH.path, HiveHealth, None)
        devices = await self._get(url, DEVICES.path, Devices, token)
        return NodeHive(hive_id=info.hive_id, version=info.version, url=url, workers=health.workers, devices=devices)

    async def _get(self, url: str, path: str, model: type[M], token: Token | None) -> M:
        headers = {} if token is None else {"Authorization": f"Bearer {token.reveal()}"}
        try:
            async with self._session.get(url + path, headers=headers, allow_redirects=False) as answer:
                body = await read_whole(answer, 1024 * 1024)
                status = answer.status
        except NotProven:
            raise HiveSilent(
                "hive_not_proven",
                f"what answers at {url} does not prove that it knows this hive's token, so nothing was sent to it",
                "Provision the node again: that gives the hive its token. If it stays, look at what listens there.",
            ) from None
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise HiveSilent(
                "hive_unreachable",
                f"no hive answers at {url} ({type(error).__name__})",
                "Look at the service llama-orch-hive on the host, and at firewalls in between.",
            ) from None
        if status != 200:
            raise HiveSilent("hive_unhealthy", f"{url}{path} answered {status}", "Read the hive's log on the host.")
        try:
            return model.model_validate_json(body)
        except ValidationError:
            raise HiveSilent(
                "hive_unhealthy", f"{url}{path} did not answer as a hive does", "Look at what runs on that port."
            ) from None


def base_url(host: Host) -> str:
    """Where the hive of `host` listens."""
    address = f"[{host.hive_address}]" if ":" in host.hive_address else host.hive_address
    return f"http://{address}:{host.hive_port}"
