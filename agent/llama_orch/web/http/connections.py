"""How many connections a service keeps: in total, and of those that have shown no token, from each peer."""

from __future__ import annotations

import ipaddress
import logging
import resource
import time
from collections import defaultdict
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

# Far more than a service's clients need, each for a few milliseconds until its request's head is here.
MOST_UNKNOWN_PER_PEER = 256
MOST_UNKNOWN = 1024
MOST = 4096
# Files, pipes and connections of the service's own.
_DESCRIPTORS_KEPT = 256
_TELL_EVERY_S = 60.0

C = TypeVar("C")


class OpenConnections(Generic[C]):
    """The open connections of one service. Where there are too many, the oldest that has shown no token must go.

    So whoever opens many hurts others for as long only as their request's head needs to arrive.
    """

    def __init__(
        self, *, most: int = MOST, most_unknown: int = MOST_UNKNOWN, most_unknown_per_peer: int = MOST_UNKNOWN_PER_PEER
    ) -> None:
        self._most = most
        self._most_unknown = most_unknown
        self._most_per_peer = most_unknown_per_peer
        self._open: dict[C, str] = {}
        # In the order of their coming.
        self._unknown: dict[C, None] = {}
        self._of_peer: defaultdict[str, dict[C, None]] = defaultdict(dict)
        self._told_at = -_TELL_EVERY_S

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: C, address: str) -> C | None:
        """Count a new connection; answers the one that must be closed for it, which may be itself."""
        peer = peer_of(address)
        must_go = self._too_many(peer)
        if must_go is None and len(self._open) >= self._most:
            self._tell("%d connections are open: a new one from %s is refused", len(self._open), peer)
            return connection
        if must_go is not None:
            self.remove(must_go)
        self._open[connection] = peer
        self._unknown[connection] = self._of_peer[peer][connection] = None
        return must_go

    def known(self, connection: C) -> None:
        """It has shown the token: from here on it counts in the total alone."""
        peer = self._open.get(connection)
        if peer is not None and connection in self._unknown:
            self._forget(connection, peer)

    def remove(self, connection: C) -> None:
        """It is closed."""
        peer = self._open.pop(connection, None)
        if peer is not None and connection in self._unknown:
            self._forget(connection, peer)

    def _too_many(self, peer: str) -> C | None:
        of_peer = self._of_peer.get(peer, {})
        if len(of_peer) >= self._most_per_peer:
            self._tell("%d connections of %s have shown no token: the oldest is closed", len(of_peer), peer)
            return next(iter(of_peer))
        if self._unknown and (len(self._unknown) >= self._most_unknown or len(self._open) >= self._most):
            self._tell("%d connections have shown no token: the oldest is closed", len(self._unknown))
            return next(iter(self._unknown))
        return None

    def _forget(self, connection: C, peer: str) -> None:
        del self._unknown[connection]
        of_peer = self._of_peer[peer]
        del of_peer[connection]
        if not of_peer:
            del self._of_peer[peer]

    def _tell(self, text: str, *values: object) -> None:
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            log.warning(text, *values)


def peer_of(address: str) -> str:
    """Whom an address counts for: itself, or the /64 that one machine may choose all its IPv6 addresses from."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found), 64), strict=False))


def most_with_descriptors() -> int:
    """How many connections this process can hold; raises its soft limit of open files as far as it may for that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + _DESCRIPTORS_KEPT
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(min(MOST, soft - _DESCRIPTORS_KEPT), 16)
