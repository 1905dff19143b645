"""The inventory as Ansible reads it: `hosts.yml` and its neighbours, merged over the queen's own file.

`ansible-inventory` is asked, so that the queen and a run by hand never disagree; its answer is kept until a file
changes. A broken file leaves the last good view in place and shows as a problem.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llama_orch.base import files
from llama_orch.base.child import Child
from llama_orch.base.child_output import Tail, hear_out
from llama_orch.contract.common import Problem

from .registered_file import HOST_KEY_VARIABLE, NAME, BrokenFile, RegisteredFile, RegisteredHost
from .shape import BrokenInventory, check_shape

log = logging.getLogger(__name__)

QUESTION_TIMEOUT_S = 60.0
# Some ten thousand hosts with many variables.
MOST_ANSWER = 64 * 2**20
_MOST_COMPLAINT = 64 * 1024
GROUP = "hives"
_VARIABLE_FOLDERS = frozenset({"group_vars", "host_vars"})
_BECOME_PASSWORDS = ("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass")
_SSH_PASSWORDS = ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password")
# What Ansible itself passes over in an inventory folder (INVENTORY_IGNORE_EXTS).
_IGNORED = (".pyc", ".pyo", ".swp", ".bak", "~", ".rpm", ".md", ".txt", ".rst", ".orig", ".cfg", ".retry")


@dataclass(frozen=True)
class Host:
    """A host of the group `hives` with what the queen needs of its variables."""

    name: str
    ssh_host: str
    ssh_port: int
    ssh_user: str
    labels: dict[str, str]
    source: Literal["rest", "inventory"]
    hive_address: str
    hive_port: int
    connection: str = "ssh"
    key_file: str | None = None
    ssh_args: tuple[str, ...] = ()
    has_become_password: bool = False
    has_ssh_password: bool = False
    host_key: str = ""

    @property
    def is_own_machine(self) -> bool:
        """Whether what is done to it is done where the queen runs, as her user and with what he may do by sudo."""
        return self.connection == "local"

    @property
    def templated(self) -> bool:
        """Whether only Ansible can tell the address, because a variable is an expression."""
        return "{{" in self.ssh_host + self.ssh_user + self.hive_address + "".join(self.ssh_args)


class Inventory:
    """The current view: hosts by name, and what is wrong with the files where something is."""

    def __init__(
        self, folder: Path, *, cache: Path, environment: dict[str, str], cwd: Path, user: str, hive_port: int
    ) -> None:
        self._folder = folder
        self._registered_file = RegisteredFile(folder)
        self._cache = cache
        self._environment = environment | {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True"}
        self._cwd = cwd
        self._user = user
        self._hive_port = hive_port
        self._hash = ""
        self._merged: dict[str, Host] = {}
        self._registered: dict[str, RegisteredHost] = {}
        self._refreshing = asyncio.Lock()
        self._reading_own = asyncio.Lock()
        self.problem: Problem | None = None
        self.hosts: dict[str, Host] = {}
        self.groups: frozenset[str] = frozenset()

    async def load(self) -> None:
        """The first view: from the cache where no file changed since, else as `refresh`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._read_cache()
        await self.refresh()

    async def refresh(self) -> bool:
        """Look at the files again; answers whether the view changed. Never raises: see `problem`."""
        async with self._refreshing:
            before = self.hosts
            try:
                async with self._reading_own:
                    self._registered = await asyncio.to_thread(self._registered_file.read)
                files = await asyncio.to_thread(self._files)
                digest = await asyncio.to_thread(_digest, files)
                if digest != self._hash or self.problem is not None:
                    await asyncio.to_thread(check_shape, self._sources(files))
                    self._merged = await self._ask_ansible(files)
                    self._hash = digest
                    await asyncio.to_thread(self._write_cache)
                self.problem = None
            except (BrokenFile, BrokenInventory, OSError) as error:
                self._report(str(error))
            except Exception as error:
                log.exception("what was read of the inventory cannot be worked on")
                self._report(f"what ansible-inventory printed cannot be worked on ({type(error).__name__})")
            self._combine()
            return self.hosts != before

    async def register(self, host: RegisteredHost) -> None:
        """Write a node into the queen's file. Raises AlreadyRegistered, BrokenFile, OSError."""
        async with self._reading_own:
            await asyncio.to_thread(self._registered_file.add, host)
            self._registered[host.name] = host
        self._merged.pop(host.name, None)
        self._combine()

    async def expect_host_key(self, name: str, host_key: str) -> None:
        """Note in the queen's file which ssh host key a node has to show. Raises BrokenFile, OSError."""
        async with self._reading_own:
            await asyncio.to_thread(self._registered_file.expect_host_key, name, host_key)
        await self.refresh()

    async def unregister(self, name: str) -> None:
        """Take a node out of the queen's file. Raises BrokenFile, OSError."""
        async with self._reading_own:
            await asyncio.to_thread(self._registered_file.remove, name)
            self._registered.pop(name, None)
        if name in self._merged and self._merged[name].source == "rest":
            del self._merged[name]
        self._combine()

    def file_of(self, name: str) -> str:
        """The name of the user's file that most probably holds the host."""
        word = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])")
        for path in self._sources(self._files()):
            if path.name != NAME and word.search(path.read_text(encoding="utf-8", errors="replace")):
                return path.name
        return "hosts.yml"

    def _combine(self) -> None:
        # A node that was just registered is shown before Ansible was asked, one just removed no longer.
        hosts = {
            name: host for name, host in self._merged.items() if host.source == "inventory" or name in self._registered
        }
        for name, entry in self._registered.items():
            if name not in hosts:
                hosts[name] = self._from_registered(entry)
        self.hosts = hosts

    def _from_registered(self, entry: RegisteredHost) -> Host:
        return Host(
            name=entry.name,
            ssh_host=entry.ssh_host,
            ssh_port=entry.ssh_port,
            ssh_user=entry.ssh_user,
            labels=dict(entry.labels),
            source="rest",
            hive_address=entry.ssh_host,
            hive_port=self._hive_port,
            key_file=entry.key_file,
            host_key=entry.host_key,
        )

    def _report(self, reason: str) -> None:
        problem = Problem(
            code="inventory_broken",
            message=reason,
            what_to_do="Mend the file; until then the queen goes on with what it last read.",
        )
        if problem != self.problem:
            log.error("the inventory cannot be read, the last good view stays: %s", reason)
        self.problem = problem

    def _files(self) -> list[Path]:
        found = []
        for path in sorted(self._folder.rglob("*")):
            parts = path.relative_to(self._folder).parts
            if not any(part.startswith(".") or part.endswith(_IGNORED) for part in parts) and path.is_file():
                found.append(path)
        return found

    def _sources(self, files: Iterable[Path]) -> list[Path]:
        return [path for path in files if path.relative_to(self._folder).parts[0] not in _VARIABLE_FOLDERS]

    async def _ask_ansible(self, files: list[Path]) -> dict[str, Host]:
        sources = self._sources(files)
        if not sources:
            return {}
        answer = await self._list([self._folder])
        self.groups = frozenset(answer) - {"_meta"} | {"ungrouped"}
        hives = _members(answer, GROUP)
        theirs = hives
        if any(path.name == NAME for path in sources):
            own = [path for path in sources if path.name != NAME]
            theirs = _members(await self._list(own), GROUP) if own else set()
        variables = answer["_meta"]["hostvars"]
        # Of a thousand hosts that is too much for one turn of the loop.
        return await asyncio.to_thread(
            lambda: {name: self._host(name, variables.get(name, {}), name in theirs) for name in sorted(hives)}
        )

    async def _list(self, sources: list[Path]) -> dict[str, Any]:
        command = ["ansible-inventory", *(word for path in sources for word in ("-i", str(path))), "--list"]
        child = await Child.start(command, environment=self._environment, stderr=subprocess.PIPE, cwd=self._cwd)
        out, err = Tail(MOST_ANSWER), Tail(_MOST_COMPLAINT)
        try:
            code = await hear_out(child, out, err, within_s=QUESTION_TIMEOUT_S)
        except TimeoutError:
            raise BrokenInventory(f"ansible-inventory did not answer within {QUESTION_TIMEOUT_S:.0f} s") from None
        if code != 0:
            raise BrokenInventory(_first_reason(err.text, self._folder))
        if not out.whole:
            raise BrokenInventory(f"ansible-inventory printed more than {MOST_ANSWER >> 20} MiB")
        return await asyncio.to_thread(_parsed, bytes(out.data))

    def _host(self, name: str, variables: dict[str, Any], theirs: bool) -> Host:
        ssh_host = str(variables.get("ansible_host", name))
        labels = variables.get("llama_orch_labels")
        key_file = variables.get("ansible_ssh_private_key_file", variables.get("ansible_private_key_file"))
        return Host(
            name=name,
            ssh_host=ssh_host,
            ssh_port=_port(variables.get("ansible_port"), 22),
            ssh_user=str(variables.get("ansible_user", self._user)),
            labels={str(k): str(v) for k, v in labels.items()} if isinstance(labels, dict) else {},
            source="inventory" if theirs else "rest",
            hive_address=str(variables.get("hive_address", ssh_host)),
            hive_port=_port(variables.get("hive_port"), self._hive_port),
            connection=str(variables.get("ansible_connection", "ssh")),
            key_file=None if key_file is None else str(key_file),
            ssh_args=_ssh_args(name, variables),
            has_become_password=any(key in variables for key in _BECOME_PASSWORDS),
            has_ssh_password=any(key in variables for key in _SSH_PASSWORDS),
            host_key=str(variables.get(HOST_KEY_VARIABLE) or ""),
        )

    def _read_cache(self) -> None:
        try:
            kept = json.loads(self._cache.read_text(encoding="utf-8"))
            self._merged = {h["name"]: Host(**h | {"ssh_args": tuple(h["ssh_args"])}) for h in kept["hosts"]}
            self.groups = frozenset(kept["groups"])
            self._hash = kept["hash"]
        except (OSError, ValueError, LookupError, TypeError):
            self._merged, self._hash = {}, ""

    def _write_cache(self) -> None:
        hosts = [asdict(host) for host in self._merged.values()]
        kept = {"hash": self._hash, "groups": sorted(self.groups), "hosts": hosts}
        try:
            files.write_text(self._cache, json.dumps(kept))
        except OSError as error:
            # Nothing is wrong with the inventory: the next queen asks Ansible anew.
            log.warning("what was read of the inventory cannot be kept in %s: %s", self._cache, error.strerror)


def _parsed(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise BrokenInventory(f"ansible-inventory printed what is no JSON ({error})") from None
    groups = all(isinstance(group, dict) for group in found.values()) if isinstance(found, dict) else False
    variables = found.get("_meta", {}).get("hostvars") if groups else None
    if not isinstance(variables, dict) or not all(isinstance(one, dict) for one in variables.values()):
        raise BrokenInventory("ansible-inventory printed JSON that is no inventory")
    return found


def _members(answer: dict[str, Any], group: str) -> set[str]:
    entry = answer.get(group, {})
    found = set(entry.get("hosts", []))
    for child in entry.get("children", []):
        found |= _members(answer, child)
    return found


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256(b"3")
    for path in files:
        digest.update(str(path).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _ssh_args(name: str, variables: dict[str, Any]) -> tuple[str, ...]:
    words: list[str] = []
    for variable in ("ansible_ssh_common_args", "ansible_ssh_extra_args"):
        try:
            words += shlex.split(str(variables.get(variable) or ""))
        except ValueError as error:
            raise BrokenInventory(f"{variable} of {name}: {str(error).lower()}") from None
    return tuple(words)


def _port(value: object, default: int) -> int:
    try:
        port = int(str(value))
    except ValueError:
        return default
    return port if 1 <= port <= 65535 else default


def _first_reason(text: str, folder: Path) -> str:
    lines = [line.strip() for line in text.replace(str(folder) + "/", "").splitlines()]
    wanted = [line for line in lines if line.startswith(("YAML parsing failed", "Origin:", "[ERROR]"))]
    return " ".join(dict.fromkeys(wanted or [line for line in lines if line]))[:500] or "ansible-inventory failed"
