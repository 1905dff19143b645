from __future__ import annotations

import hashlib
import hmac
import re

import pytest

from llama_orch.contract.proof import NONCE, Proof, new_nonce, proof_of

TOKEN = "a-token-of-enough-length"
NONCE_SENT = "A" * 22


def test_the_proof_is_what_the_documentation_says():
    message = b"llama-orch proof 1\0hive\0gpu-1\0" + NONCE_SENT.encode()
    wanted = hmac.new(TOKEN.encode(), message, hashlib.sha256).hexdigest()
    assert proof_of(TOKEN, "hive", "gpu-1", NONCE_SENT) == wanted
    assert Proof(name="gpu-1", proof=wanted).holds(TOKEN, "hive", NONCE_SENT)


@pytest.mark.parametrize(
    ("token", "part", "name", "nonce"),
    [
        ("another-token-of-enough-length", "hive", "gpu-1", NONCE_SENT),
        (TOKEN, "queen", "gpu-1", NONCE_SENT),
        (TOKEN, "hive", "gpu-2", NONCE_SENT),
        (TOKEN, "hive", "gpu-1", "B" * 22),
    ],
)
def test_a_proof_is_for_one_token_part_name_and_nonce(token: str, part: str, name: str, nonce: str):
    other = Proof(name="gpu-1", proof=proof_of(token, part, name, nonce))
    assert not other.holds(TOKEN, "hive", NONCE_SENT)


def test_each_token_that_a_service_takes_is_proven():
    proofs = [proof_of(token, "worker", "w1", NONCE_SENT) for token in ("a-hive-s-own-token", "the-token-of-the-fleet")]
    proof = Proof(name="w1", proof=proofs[0], also=proofs[1:])
    assert proof.holds("a-hive-s-own-token", "worker", NONCE_SENT)
    assert proof.holds("the-token-of-the-fleet", "worker", NONCE_SENT) and not proof.holds(TOKEN, "worker", NONCE_SENT)


@pytest.mark.parametrize("proof", ["", "ä" * 64, "0" * 64, TOKEN])
def test_what_is_no_proof_does_not_hold(proof: str):
    assert not Proof(name="gpu-1", proof=proof).holds(TOKEN, "hive", NONCE_SENT)


def test_each_nonce_is_new_and_as_services_take_it():
    nonces = {new_nonce() for _ in range(100)}
    assert len(nonces) == 100 and all(re.fullmatch(NONCE, nonce) for nonce in nonces)
