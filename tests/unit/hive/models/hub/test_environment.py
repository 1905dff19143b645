"""What of the agent's environment reaches the processes that speak to the hub, and what is refused beforehand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from llama_orch.hive.models.hub import environment
from llama_orch.hive.problems import Failed

CACHE = Path("/models")
VARIABLES = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SSL_CERT_FILE", "REQUEST_METHOD")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)


def refusal(endpoint: str = "") -> tuple[str, str]:
    with pytest.raises(Failed) as failed:
        environment.environment(endpoint, CACHE)
    assert not failed.value.retry, "nothing but the setting changes it"
    return failed.value.problem.code, f"{failed.value.problem.message}; {failed.value.problem.what_to_do}"


def test_what_is_needed_is_passed_on_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"HTTPS_PROXY": "proxy.example:3128", "HF_ENDPOINT": "", "A_SECRET": "x"}.items():
        monkeypatch.setenv(name, value)
    passed = environment.environment("https://hub.example", CACHE)
    assert passed["HTTPS_PROXY"] == "proxy.example:3128" and passed["HF_ENDPOINT"] == "https://hub.example"
    assert passed["HF_HOME"] == "/models/.home" and "A_SECRET" not in passed
    assert "HF_ENDPOINT" not in environment.environment("", CACHE), "an empty one would be taken for an address"


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_offline_mode_is_obeyed_and_said(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "0")
    environment.environment("", CACHE)
    monkeypatch.setenv(name, "true")
    code, said = refusal()
    assert code == "hub_offline" and name in said and "file:/path.gguf" in said


@pytest.mark.parametrize(
    "url", ["hub.example", "ftp://hub.example", "http://", "http://[::1", "http://h:x", "http://a b"]
)
def test_an_endpoint_that_is_no_address_names_the_setting(monkeypatch: pytest.MonkeyPatch, url: str):
    assert refusal(url)[0] == "hub_endpoint_wrong" and "hub_endpoint" in refusal(url)[1]
    monkeypatch.setenv("HF_ENDPOINT", url)
    assert "HF_ENDPOINT" in refusal()[1]
    assert environment.environment("http://hub.example:8080/path", CACHE)


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "http_proxy"])
@pytest.mark.parametrize("url", ["socks://me:secret@proxy:1080", "socks4://proxy", "gopher://proxy"])
def test_a_proxy_of_a_kind_that_cannot_be_used_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str
):
    monkeypatch.setenv(name, url)
    code, said = refusal()
    assert code == "hub_proxy_unusable" and name in said and f"{url.partition(':')[0]}://" in said
    assert "secret" not in said
    monkeypatch.setenv("NO_PROXY", "*")
    environment.environment("", CACHE)


def test_socks_needs_its_support(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", "socks5h://proxy:1080")
    there: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    assert refusal()[0] == "hub_proxy_unusable"
    there.append("socksio")
    environment.environment("", CACHE)


@pytest.mark.parametrize("url", ["proxy:3128", "http://proxy:3128", "https://me:secret@proxy"])
def test_other_proxies_are_the_clients(monkeypatch: pytest.MonkeyPatch, url: str):
    monkeypatch.setenv("HTTPS_PROXY", url)
    assert environment.environment("", CACHE)["HTTPS_PROXY"] == url


def test_certificates_that_are_not_there_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    code, said = refusal()
    assert code == "hub_certificate" and "SSL_CERT_FILE" in said
    (tmp_path / "ca.pem").touch()
    environment.environment("", CACHE)
