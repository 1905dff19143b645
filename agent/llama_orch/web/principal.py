"""Who asks: told by an authenticator from what a request shows, known to all that is done for it."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from llama_orch.base.tokens import Token


class Scope(StrEnum):
    """What a principal may do; `admin` holds the other two."""

    ADMIN = "admin"
    READ = "read"
    INFERENCE = "inference"


@dataclass(frozen=True)
class Principal:
    """A name, as the audit shows it, and what it may do."""

    name: str
    scopes: frozenset[Scope]


ADMIN = Principal("admin", frozenset(Scope))
"""Who has the token of a machine's own API."""
CLIENT = Principal("inference", frozenset({Scope.INFERENCE}))
"""Who has the token of a worker."""


class Authenticator(Protocol):
    """Tells who shows a secret."""

    def principal_of(self, given: str) -> Principal | None:
        """Whose it is, None where it is nobody's; in time that does not depend on where it differs."""
        ...


@dataclass(frozen=True)
class OneToken:
    """The one token of a service, and who has it."""

    token: Token
    principal: Principal = ADMIN

    def principal_of(self, given: str) -> Principal | None:
        """See Authenticator."""
        return self.principal if self.token.matches(given) else None


@dataclass(frozen=True)
class Asker:
    """Who sent the request that is served, and from which address; nobody where the service acts by itself."""

    principal: str | None = None
    address: str | None = None


_current: contextvars.ContextVar[Asker] = contextvars.ContextVar("asker", default=Asker())  # noqa: B039  it is frozen


def asks(principal: Principal, address: str | None) -> None:
    """From here on what is done is done for this principal."""
    _current.set(Asker(principal.name, address))


def current() -> Asker:
    """For whom this is done."""
    return _current.get()
