"""The environment in which the hub is asked: what of the agent's is passed on, and what of it keeps the hub away.

The hub's library, and the HTTP client below it, read these variables by themselves. Where one is wrong they raise
whatever comes first, some of it while they are imported.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

from llama_orch.contract.home import HOME_VARIABLE

from ...problems import Failed

# As the library reads them (huggingface_hub.constants): it asks nobody where one of them is set.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = {"1", "ON", "YES", "TRUE"}
# What a process that asks the hub gets of the agent's environment.
_ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT", HOME_VARIABLE),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
)
_PROXIED = ("http", "https", "all")
_SOCKS = {"socks5", "socks5h"}


def check(endpoint: str) -> None:
    """Raise Failed, naming the setting, where the hub cannot be asked so; `endpoint` is the setting, or empty."""
    _refuse_offline()
    if endpoint:
        _check_endpoint("hub_endpoint", endpoint)
    else:
        _check_endpoint("HF_ENDPOINT", os.environ.get("HF_ENDPOINT", ""))
    _check_proxies()
    _check_certificates(os.environ.get("SSL_CERT_FILE", ""))


def _refuse_offline() -> None:
    for name in _OFFLINE:
        if os.environ.get(name, "").upper() in _TRUE:
            raise Failed(
                "hub_offline",
                f"the hub is not asked, as {name} is set in the hive's environment",
                f"take {name} out of it, or name a model on the hive's disk as file:/path.gguf",
            )


def _check_endpoint(setting: str, url: str) -> None:
    if url and _scheme_of(url) not in {"http", "https"}:
        raise Failed(
            "hub_endpoint_wrong",
            f"{setting} is no address of a hub",
            f"give {setting} an http:// or https:// address, or leave it out for the hub itself",
        )


def _check_proxies() -> None:
    proxies = getproxies_environment()
    if "*" in {name.strip() for name in proxies.get("no", "").split(",")}:
        return
    usable = {"http", "https"} | (_SOCKS if importlib.util.find_spec("socksio") is not None else set())
    for kind in _PROXIED:
        url = proxies.get(kind, "")
        # The client looks at all of them, whichever the hub's address needs.
        if not url or (scheme := _scheme_of(url if "://" in url else f"http://{url}")) in usable:
            continue
        # Nothing more of it is shown: it may hold a password.
        what = "is no address" if scheme is None else f"names a {scheme}:// proxy, of a kind that cannot be used"
        raise Failed(
            "hub_proxy_unusable",
            f"{_variable(kind)} in the hive's environment {what}",
            f"name an http:// or https:// proxy in it, or take it out of the environment and set {kind.upper()}_PROXY "
            "for programs that can use it",
        )


def _variable(kind: str) -> str:
    """The name of the variable that counts: of two, the one in small letters does."""
    name = f"{kind}_proxy"
    return name if name in os.environ else name.upper()


def _check_certificates(file: str) -> None:
    if file and not Path(file).is_file():
        raise Failed(
            "hub_certificate",
            "SSL_CERT_FILE in the hive's environment names no file",
            "name a file of certificates in it, in the PEM format, or take it out of the environment",
        )


def _scheme_of(url: str) -> str | None:
    """The scheme of an address with a host, in small letters; None of what is no address."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts.scheme if usable and url.isprintable() and " " not in url else None


def environment(endpoint: str, cache: Path) -> dict[str, str]:
    """What a process that speaks to the hub gets of the agent's environment. Raises Failed where that cannot work."""
    check(endpoint)
    # An empty variable is none: the library would take it for an address.
    kept = {name: os.environ[name] for name in _ENVIRONMENT if os.environ.get(name)}
    hub = {"HF_ENDPOINT": endpoint} if endpoint else {}
    return {**kept, **hub, "HF_HOME": str(cache / ".home")}
