"""What the errors of the hub's library mean: each becomes one of our problems, with the setting that may mend it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ...problems import Failed

_DEEPEST_CAUSE = 10
_MOST_QUOTED = 100


@contextmanager
def explained(repo: str, revision: str | None) -> Iterator[None]:
    """Raise Failed in the place of what the library raises, as far as that is known."""
    try:
        yield
    except Failed:
        raise
    except Exception as error:
        failed = _of_hub(error, repo, revision) or _of_connection(error)
        if failed is None:
            raise
        raise failed from None


def no_hub() -> Failed:
    """What answers is none: a proxy's page, a login, or another program at that address."""
    return Failed(
        "hub_is_none",
        "what answers at the hub's address is no hub, but sends something like a web page",
        "see whether a proxy or a login stands in between (HTTPS_PROXY and NO_PROXY in the hive's environment), and "
        "that hub_endpoint is a hub",
        retry=True,
    )


def _of_hub(error: Exception, repo: str, revision: str | None) -> Failed | None:  # noqa: PLR0911  one for each kind
    """What a hub says, or what is said in its place."""
    if isinstance(error, HfHubHTTPError) and _is_web_page(error.response):
        return no_hub()
    if isinstance(error, GatedRepoError):
        return Failed(
            "model_gated",
            f"{repo} is gated: its owner lets in only who asked",
            "accept its terms on its page, then put a token of that account into the hive's hub_token_file",
        )
    if isinstance(error, RevisionNotFoundError):
        return Failed("model_not_found", f"{repo} has no revision {revision}", "correct the part after '@'")
    if isinstance(error, RemoteEntryNotFoundError):
        return Failed("file_not_found", f"the file is no longer in {repo}", "choose another file")
    if isinstance(error, RepositoryNotFoundError):
        return Failed(
            "model_not_found",
            f"the hub has no repository {repo} that this hive may see",
            "check the name; for a private one put a token into the hive's hub_token_file",
        )
    if isinstance(error, HFValidationError):
        return Failed("model_not_found", f"the hub does not take {repo} as a name", "check the name")
    if isinstance(error, HfHubHTTPError):
        return _of_status(error.response.status_code if error.response is not None else 0)
    return None


def _of_status(status: int) -> Failed:
    if status == 401:
        return Failed("hub_token_refused", "the hub refuses the hive's token", "renew hub_token_file")
    if status == 407:
        return _proxy_refused("407 Proxy Authentication Required")
    return Failed("hub_failed", f"the hub answered {status}", "try again later", retry=True)


def _of_connection(error: Exception) -> Failed | None:  # noqa: PLR0911  one for each kind
    """What went wrong on the way to it."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate(f"the hub's certificate is not trusted ({_quoted(cause.verify_message)})")
    if isinstance(error, ssl.SSLError):
        return _certificate(f"SSL_CERT_FILE or SSL_CERT_DIR cannot be read ({_quoted(error.reason)})")
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return Failed("hub_offline", "the hub's library is in its offline mode", "take HF_HUB_OFFLINE out")
    if any(isinstance(cause, FileMetadataError) for cause in causes):
        return no_hub()
    if isinstance(error, httpx2.ProxyError):
        return _proxy_refused(str(error))
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
        return Failed("hub_endpoint_wrong", "the hub's address leads to no http:// address", "correct hub_endpoint")
    if isinstance(error, (httpx2.HTTPError, LocalEntryNotFoundError)):
        return Failed(
            "hub_unreachable",
            f"the hub cannot be reached ({type(error).__name__})",
            "check the hive's network, HTTPS_PROXY in its environment and hub_endpoint; a model on its disk can be "
            "named as file:/path.gguf",
            retry=True,
        )
    if isinstance(error, (ImportError, ValueError)) and "proxy" in str(error).lower():
        return Failed(
            "hub_proxy_unusable",
            "a proxy in the hive's environment is of a kind that cannot be used",
            "name an http:// or https:// proxy in HTTPS_PROXY, and take ALL_PROXY out",
        )
    if isinstance(error, ValueError) and "too large" in str(error):
        return Failed("file_too_large", "files over 50 GB must be in parts", "choose a split model")
    # The JSON of an answer that is none.
    return no_hub() if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) else None


def _certificate(message: str) -> Failed:
    return Failed(
        "hub_certificate",
        message,
        "where a proxy opens encrypted connections, name a file with its issuer's certificate in SSL_CERT_FILE of the "
        "hive's environment; else see hub_endpoint and the machine's clock",
    )


def _proxy_refused(said: str) -> Failed:
    return Failed(
        "hub_proxy_refused",
        f"the proxy lets nobody through to the hub ({_quoted(said)})",
        "see HTTPS_PROXY in the hive's environment: the address, and user and password where it asks for them; hubs "
        "that need no proxy go into NO_PROXY",
        retry=True,
    )


def _is_web_page(response: httpx2.Response | None) -> bool:
    """Whether it is a page for people. A hub's refusals have a code of its own; one that fails may send a page."""
    if response is None or response.status_code >= 500 or "X-Error-Code" in response.headers:
        return False
    return response.headers.get("Content-Type", "").lower().startswith("text/html")


def _causes(error: BaseException) -> list[BaseException]:
    found = [error]
    while len(found) < _DEEPEST_CAUSE and (cause := found[-1].__cause__ or found[-1].__context__) is not None:
        found.append(cause)
    return found


def _quoted(text: str | None) -> str:
    """What another program said, short and without control characters."""
    return "".join(sign for sign in text or "it does not say why" if sign.isprintable())[:_MOST_QUOTED]
