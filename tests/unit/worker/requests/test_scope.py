from __future__ import annotations

import pytest
from pydantic import ValidationError

from llama_orch.contract.errors import BadRequest
from llama_orch.contract.hive import SpawnRequest
from llama_orch.hive.settings import HiveSettings
from llama_orch.worker.requests.scope import EVERYBODY, Scopes

GATEWAYS = Scopes(["10.0.0.7/32", "fd00::/64"])


def test_the_address_is_the_scope():
    assert GATEWAYS.scope("192.168.1.4", None) == GATEWAYS.scope("192.168.1.4", None)
    assert GATEWAYS.scope("192.168.1.4", None) != GATEWAYS.scope("192.168.1.5", None)
    assert GATEWAYS.scope("::ffff:192.168.1.4", None) == GATEWAYS.scope("192.168.1.4", None)


@pytest.mark.parametrize("peer", ["10.0.0.7", "::ffff:10.0.0.7", "fd00::5"])
def test_a_gateway_names_the_scope(peer: str):
    assert GATEWAYS.scope(peer, "key-1") == "named key-1"
    assert GATEWAYS.scope(peer, "key-1") != GATEWAYS.scope(peer, "key-2")


@pytest.mark.parametrize("peer", ["10.0.0.8", "fd00:0:0:1::5", "127.0.0.1", "", "not an address"])
def test_nobody_else_does(peer: str):
    assert GATEWAYS.scope(peer, "key-1") == GATEWAYS.scope(peer, None) != GATEWAYS.scope("10.0.0.7", "key-1")


def test_a_name_is_never_taken_for_an_address():
    named = GATEWAYS.scope("10.0.0.7", "192.168.1.4")
    assert named not in {GATEWAYS.scope("192.168.1.4", None), GATEWAYS.scope("10.0.0.7", None)}


@pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "\xe4", "x" * 129])
def test_a_name_that_cannot_be_one_is_refused(name: str):
    with pytest.raises(BadRequest, match="X-Llama-Orch-Scope"):
        GATEWAYS.scope("10.0.0.7", name)


def test_where_all_share_there_is_one_scope():
    shared = Scopes(["10.0.0.7/32"], shared=True)
    assert {shared.scope("10.0.0.7", "a"), shared.scope("192.168.1.4", None)} == {EVERYBODY}


def test_what_the_settings_name_as_gateways_must_be_networks():
    assert HiveSettings.model_validate({"gateways": "10.0.0.7, fd00::/64"}).gateways == ["10.0.0.7/32", "fd00::/64"]
    with pytest.raises(ValidationError, match=r"expected an address or a network.*host bits"):
        HiveSettings.model_validate({"gateways": ["10.0.0.7/8"]})


def test_sharing_is_asked_for():
    assert not SpawnRequest(model_ref="hf:a/b", backend="cpu").reuse_across_scopes
