from __future__ import annotations

import resource

import pytest

from llama_orch.web.http import connections
from llama_orch.web.http.connections import OpenConnections, peer_of


def test_the_oldest_of_a_peer_goes_where_it_has_too_many_that_have_shown_no_token():
    counted = OpenConnections[str](most=100, most_unknown=100, most_unknown_per_peer=2)
    assert [counted.add(name, "192.0.2.1") for name in ("a", "b", "c", "d")] == [None, None, "a", "b"]
    assert counted.add("other", "192.0.2.2") is None, "who opens many hurts himself"
    counted.known("c")
    assert counted.add("e", "192.0.2.1") is None
    assert counted.add("f", "192.0.2.1") == "d"
    assert len(counted) == 4


def test_the_oldest_of_all_goes_where_many_peers_open_some():
    counted = OpenConnections[int](most=100, most_unknown=3, most_unknown_per_peer=2)
    assert [counted.add(number, f"192.0.2.{number}") for number in range(5)] == [None, None, None, 0, 1]


def test_one_that_has_shown_the_token_never_goes_and_a_new_one_is_refused_where_all_have():
    counted = OpenConnections[str](most=2, most_unknown=2, most_unknown_per_peer=2)
    for name in ("a", "b"):
        counted.add(name, "192.0.2.1")
        counted.known(name)
    assert counted.add("c", "192.0.2.1") == "c"
    assert len(counted) == 2
    counted.remove("c")
    counted.remove("a")
    assert counted.add("d", "192.0.2.1") is None
    assert counted.add("e", "192.0.2.1") == "d", "a place is made for whoever may show a token"


def test_nothing_is_kept_of_what_is_closed():
    counted = OpenConnections[int]()
    for number in range(1000):
        counted.add(number, f"10.0.{number // 256}.{number % 256}")
        counted.known(number) if number % 2 else None
        counted.remove(number)
        counted.remove(number)
    assert (len(counted), len(counted._unknown), len(counted._of_peer)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_peer_is_an_address_or_the_network_of_one_machine(address: str, peer: str):
    assert peer_of(address) == peer


def test_the_bound_leaves_descriptors_for_the_service_itself(monkeypatch: pytest.MonkeyPatch):
    limits = [(1024, 1024)]
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, both: limits.append(both))
    assert connections.most_with_descriptors() == 768
    limits.append((1024, resource.RLIM_INFINITY))
    assert connections.most_with_descriptors() == connections.MOST
    assert limits[-1][0] > connections.MOST
