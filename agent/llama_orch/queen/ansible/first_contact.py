"""Whether a host is the one that was meant: its ssh host key, before any password goes there.

ssh itself accepts only keys that known_hosts has. A key that is new is looked at without logging in; it is recorded
where it is the one that was given, or where no password is at stake.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llama_orch.contract.common import Problem

from . import failures
from .ssh import Ssh
from .ssh_keys import KnownHosts, NoHostKey, RecordedKey, entry_of, host_key_fingerprint, read_keys

# Where ssh writes what a host shows, until it was looked at.
SHOWN = ".keys-"
# A host shows one key of each kind that it has.
_KINDS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521",
    "rsa-sha2-512,rsa-sha2-256",
)


class FirstContact:
    """One host's key. `sends_password` is whether a password is to be sent there, of ssh or of sudo."""

    def __init__(self, ssh: Ssh, known_hosts: KnownHosts, *, sends_password: bool) -> None:
        self._ssh = ssh
        self._host = ssh.host
        self._known_hosts = known_hosts
        self._must_be_confirmed = sends_password and not ssh.setup.trust_first_key

    def wrong_setting(self) -> Problem | None:
        """The problem of a host whose inventory gives a key that is none."""
        try:
            self._wanted()
        except NoHostKey as error:
            return Problem(
                code="host_key_invalid",
                message=f"llama_orch_host_key of {self._host.name} is no host key: {error}",
                what_to_do="Mend it in the inventory. " + failures.AGAIN,
                host=self._host.name,
            )
        return None

    async def meet(self) -> Problem | None:
        """Record the key of a host that nobody knows, or say why not."""
        wanted = self._wanted()
        shown, text = await self._look(wanted)
        if not shown:
            task = "log in by ssh"
            return failures.classify(text, task=task, host=self._host.name, unreachable=True)
        if wanted is not None and wanted not in _fingerprints(shown):
            return self._another_key(wanted, shown)
        if wanted is None and self._must_be_confirmed:
            return self._unconfirmed(shown)
        await asyncio.to_thread(self._known_hosts.add, shown, confirmed=wanted is not None)
        return None

    async def compare(self) -> Problem | None:
        """Whether the key of a host that is known is the one that was given, and good enough for a password."""
        wanted = self._wanted()
        entry = entry_of(self._host.ssh_host, self._host.ssh_port)
        recorded = self._known_hosts.keys_of(entry)
        if wanted is None:
            doubtful = [key for key in recorded if not key.confirmed]
            return self._unconfirmed(doubtful) if doubtful and self._must_be_confirmed else None
        # A host that is known by a pattern or an authority has no line of its own.
        shown = recorded or (await self._look(wanted))[0]
        if wanted not in _fingerprints(shown):
            return self._another_key(wanted, shown)
        if recorded:
            await asyncio.to_thread(self._known_hosts.confirm, entry, wanted)
        return None

    def _wanted(self) -> str | None:
        return host_key_fingerprint(self._host.host_key) if self._host.host_key else None

    async def _look(self, wanted: str | None) -> tuple[list[RecordedKey], str]:
        """The key that the host shows, the wanted one where it has that; nobody logs in, nothing is recorded."""
        shown: list[RecordedKey] = []
        text = ""
        for kind in (None,) if wanted is None else _KINDS:
            with tempfile.TemporaryDirectory(prefix=SHOWN, dir=self._known_hosts.path.parent) as folder:
                keys = Path(folder) / "keys"
                options = ["-o", "PreferredAuthentications=none", *self._ssh.setup.options(new_keys=keys)]
                if kind is not None:
                    options += ["-o", f"HostKeyAlgorithms={kind}"]
                _, text = await self._ssh.run("exit 0", options=options)
                found = read_keys(keys)
            if wanted in _fingerprints(found):
                return found, text
            shown += found
        return shown, text

    def _another_key(self, wanted: str, shown: Sequence[RecordedKey]) -> Problem:
        return Problem(
            code="host_key_mismatch",
            message=f"{self._shows(shown)}, and not {wanted}, which was given; no password was sent",
            what_to_do="Find out who answers there, or give the right host_key. " + failures.AGAIN,
            host=self._host.name,
        )

    def _unconfirmed(self, shown: Sequence[RecordedKey]) -> Problem:
        return Problem(
            code="host_key_unconfirmed",
            message=f"{self._shows(shown)}, which nobody has confirmed; no password was sent",
            what_to_do="Compare it with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the host's console, then "
            "POST …/provision with this host_key and the password; for a host of your own inventory set "
            "llama_orch_host_key. The queen's setting trust_first_host_key does without.",
            host=self._host.name,
        )

    def _shows(self, keys: Sequence[RecordedKey]) -> str:
        named = ", ".join(f"{key.fingerprint} ({key.type})" for key in keys) or "none that can be seen"
        return f"the host key of {self._host.ssh_host} port {self._host.ssh_port} is {named}"


def _fingerprints(keys: Sequence[RecordedKey]) -> set[str]:
    return {key.fingerprint for key in keys}
