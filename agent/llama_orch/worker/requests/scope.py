"""Whose request it is, as far as a worker needs to know: what one scope left in a slot is not told to another.

How many tokens of a prompt were there already, and how soon the answer began, tell who asks what others had asked. A
worker knows no clients, only addresses; a gateway knows them and names them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from sanic import Request

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.inference import SCOPE_HEADER

# Who reuses across scopes has this one for all requests.
EVERYBODY = "*"
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAME = re.compile(r"[!-~]{1,128}")


class Scopes:
    """Tells requests' scopes. `gateways` are networks; what comes from there may name its scope."""

    def __init__(self, gateways: Iterable[str], *, shared: bool = False) -> None:
        self._gateways: Sequence[_Network] = [ipaddress.ip_network(one) for one in gateways]
        self._shared = shared

    def of(self, request: Request) -> str:
        """The scope of a request. Raises BadRequest where a gateway names none that can be one."""
        return self.scope(request.ip, request.headers.get(SCOPE_HEADER))

    def scope(self, peer: str, named: str | None) -> str:
        """The scope of what comes from this address with this header. Raises BadRequest."""
        if self._shared:
            return EVERYBODY
        address = _address(peer)
        # Of anybody else the header is a claim, by which one client could read along with another.
        if named is None or address is None or not any(address in network for network in self._gateways):
            return f"address {address or peer}"
        if not _NAME.fullmatch(named):
            raise BadRequest(f"{SCOPE_HEADER}: 1 to 128 printable ASCII characters without spaces")
        return f"named {named}"


def _address(peer: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address itself, the same for a socket of IPv6 that takes IPv4 too."""
    try:
        found = ipaddress.ip_address(peer)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
