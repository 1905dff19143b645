"""Owner of `00-registered.yml`: the inventory file of nodes that came by REST. Nobody else writes it.

It sorts before `hosts.yml`, so that what a person writes there overrides it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from llama_orch.base import files, locks
from llama_orch.contract.patterns import HostKeyGiven, LabelKey, LabelValue, NodeName, SshHost, SshUser

NAME = "00-registered.yml"
# Who rewrites it has done so within a moment.
LOCK_S = 10.0
# A host's ssh key as somebody confirmed it; people write it into their own files too.
HOST_KEY_VARIABLE = "llama_orch_host_key"
_HEADER = """\
# Written by the queen, whole, at every change: do not edit.
# Nodes come here by POST /api/v1/nodes and leave by DELETE /api/v1/nodes/NAME.
# Your own hosts belong into hosts.yml beside this file; what you write there overrides this file.
"""


class BrokenFile(Exception):
    """The file is there, but it is not what the queen wrote; the message says what is wrong."""


class AlreadyRegistered(Exception):
    """A node of this name is in the file."""


@dataclass(frozen=True)
class RegisteredHost:
    """One node as it was registered."""

    name: str
    ssh_host: str
    ssh_port: int
    ssh_user: str
    key_file: str
    labels: dict[str, str] = field(default_factory=dict)
    host_key: str = ""


class RegisteredFile:
    """Reads and rewrites the file. Every method blocks on the disk for some milliseconds."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock = folder / f".{NAME}.lock"

    def read(self) -> dict[str, RegisteredHost]:
        """The nodes in the file; none where there is no file. Raises BrokenFile."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenFile(f"{NAME} cannot be read: {error}") from None
        return parse(text)

    def add(self, host: RegisteredHost) -> None:
        """Add a node; on the disk when this returns. Raises AlreadyRegistered, BrokenFile, OSError."""

        def change(hosts: dict[str, RegisteredHost]) -> None:
            if host.name in hosts:
                raise AlreadyRegistered(host.name)
            hosts[host.name] = host

        self._rewrite(change)

    def expect_host_key(self, name: str, host_key: str) -> None:
        """Note which ssh host key a node has to show. Raises BrokenFile, OSError."""

        def change(hosts: dict[str, RegisteredHost]) -> None:
            if name in hosts:
                hosts[name] = replace(hosts[name], host_key=host_key)

        self._rewrite(change)

    def remove(self, name: str) -> None:
        """Remove a node; one that is not there is no error. Raises BrokenFile, OSError."""
        self._rewrite(lambda hosts: hosts.pop(name, None))

    def _rewrite(self, change: Callable[[dict[str, RegisteredHost]], object]) -> None:
        try:
            with locks.held(self._lock, LOCK_S):
                self._rewrite_alone(change)
        except locks.Held:
            raise BrokenFile(f"another process has held {self._lock.name} for {LOCK_S:g} s; ask again") from None

    def _rewrite_alone(self, change: Callable[[dict[str, RegisteredHost]], object]) -> None:
        hosts = self.read()
        before = dict(hosts)
        change(hosts)
        if hosts == before and self.path.exists():
            return
        text = render(hosts)
        if parse(text) != hosts:
            raise BrokenFile(f"{NAME} would not read back as it was written; nothing was changed")
        # No secret is in it, and a run by hand may be somebody else's.
        files.write_text(self.path, text, 0o644)


def render(hosts: dict[str, RegisteredHost]) -> str:
    """The file's text. Every string is quoted, as Ansible reads YAML 1.1 where `on` and `0755` are no strings."""
    entries = {
        name: {
            "ansible_host": host.ssh_host,
            "ansible_port": host.ssh_port,
            "ansible_user": host.ssh_user,
            "ansible_ssh_private_key_file": host.key_file,
            "llama_orch_labels": dict(sorted(host.labels.items())),
        }
        | ({HOST_KEY_VARIABLE: host.host_key} if host.host_key else {})
        for name, host in sorted(hosts.items())
    }
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 10_000
    out = io.StringIO()
    yaml.dump({"all": {"children": {"hives": {"hosts": _quoted(entries)}}}}, out)
    return _HEADER + out.getvalue()


def parse(text: str) -> dict[str, RegisteredHost]:
    """What `render` wrote. Raises BrokenFile where a person or a disk changed it into something else.

    An empty file is broken too: it is what a full disk or an accident leaves of one that had nodes.
    """
    try:
        document = YAML(typ="safe", pure=True).load(text)
        entries = document["all"]["children"]["hives"]["hosts"]
        return {name: _host(name, entry) for name, entry in entries.items()}
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise BrokenFile(f"{NAME} is not as the queen wrote it ({reason}); undo the edit or delete the file") from None


_NAME = TypeAdapter(NodeName)
_HOST = TypeAdapter(SshHost)
_USER = TypeAdapter(SshUser)
_LABELS = TypeAdapter(dict[LabelKey, LabelValue])
_KEY = TypeAdapter(HostKeyGiven)


def _host(name: object, entry: dict[str, Any]) -> RegisteredHost:
    return RegisteredHost(
        name=_NAME.validate_python(name, strict=True),
        ssh_host=_HOST.validate_python(entry["ansible_host"], strict=True),
        ssh_port=int(entry["ansible_port"]),
        ssh_user=_USER.validate_python(entry["ansible_user"], strict=True),
        key_file=str(entry["ansible_ssh_private_key_file"]),
        labels=_LABELS.validate_python(entry.get("llama_orch_labels") or {}, strict=True),
        host_key=_KEY.validate_python(entry[HOST_KEY_VARIABLE], strict=True) if HOST_KEY_VARIABLE in entry else "",
    )


def _quoted(value: object) -> object:
    if isinstance(value, dict):
        return {_quoted(key) if key not in _OURS else key: _quoted(item) for key, item in value.items()}
    return DoubleQuotedScalarString(value) if isinstance(value, str) else value


_OURS = frozenset(
    {
        *("ansible_host", "ansible_port", "ansible_user", "ansible_ssh_private_key_file"),
        *("llama_orch_labels", HOST_KEY_VARIABLE),
    }
)
