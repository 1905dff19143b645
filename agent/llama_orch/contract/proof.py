"""How a service proves that it knows a token, before anybody sends it that token.

`GET /api/v1/proof?nonce=…` is answered without a token: the service's name, and an HMAC-SHA256 (RFC 2104) whose key is
the token and whose message names what the proof is for, the part, the name and the nonce. Who asks knows the token too
and compares. It says nothing of a service in between that passes questions on: that needs TLS.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from pydantic import Field

from .common import Response

# 128 bits or more, in what `secrets.token_urlsafe` writes.
NONCE = r"^[A-Za-z0-9_-]{22,64}$"
# No other use of a token as a key may ever give the same bytes.
_PURPOSE = "llama-orch proof 1"


class Proof(Response):
    """`GET /api/v1/proof`: which service this is, and 64 hexadecimal digits that only its token makes.

    `also` has the same of each other token that it takes.
    """

    name: str
    proof: str
    also: list[str] = Field(default_factory=list[str], max_length=8)

    def holds(self, token: str, part: str, nonce: str) -> bool:
        """Whether who answered `nonce` knows `token`; each proof is compared in constant time."""
        wanted = proof_of(token, part, self.name, nonce).encode()
        return any(hmac.compare_digest(given.encode(), wanted) for given in (self.proof, *self.also))


def new_nonce() -> str:
    """A nonce that nobody has used or can foresee."""
    return secrets.token_urlsafe(32)


def proof_of(token: str, part: str, name: str, nonce: str) -> str:
    """The proof of the service `name`; `part` is queen, hive or worker, so that none can pass for another."""
    message = "\0".join((_PURPOSE, part, name, nonce))
    return hmac.new(token.encode(), message.encode(), hashlib.sha256).hexdigest()
