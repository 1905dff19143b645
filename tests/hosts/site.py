"""A user's site for tests: an inventory folder, secrets beside it, and the project's own playbooks run on them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.playbook_run import Run

from .fixtures import KeyPair
from .machines import Host

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Site:
    """The folder `inventory/` with a hosts.yml of its own, and `secrets/` as playbooks make it.

    All hosts are hives but the one whose name `queen` is.
    """

    folder: Path
    key: KeyPair
    hosts: Mapping[str, Host]
    queen: str = ""
    variables: dict[str, Any] = field(default_factory=dict)
    of_host: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self) -> None:
        """Write the inventory as a user would have after editing it."""
        entries: dict[str, dict[str, Any]] = {
            name: {"ansible_host": host.address, "ansible_user": "llama-orch", **self.of_host.get(name, {})}
            for name, host in self.hosts.items()
        }
        queen = {name: entry for name, entry in entries.items() if name == self.queen}
        hives = {name: entry for name, entry in entries.items() if name != self.queen}
        children = {"queen": {"hosts": queen}, "hives": {"hosts": hives, "vars": self.variables}}
        inventory = self.folder / "inventory"
        inventory.mkdir(parents=True, exist_ok=True)
        (inventory / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": children}}))

    def environment(self) -> dict[str, str]:
        """How this site's hosts are reached; nobody's ~/.ssh is read or written."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        # Hosts come and go at the same addresses: the keys they are known by are the site's own.
        ssh = f"-F none -o ControlMaster=auto -o ControlPersist=30m -o UserKnownHostsFile={self.folder}/known_hosts"
        return {
            **inherited,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PRIVATE_KEY_FILE": str(self.key.private),
            "ANSIBLE_SSH_ARGS": f"{ssh} -o StrictHostKeyChecking=accept-new",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.folder / "cp"),
        }

    def play(self, playbook: str | Path, *words: str, timeout: float = 900.0) -> Run:
        """Run `ansible-playbook playbooks/NAME.yml` in the checkout, as the documentation says, or a test's own."""
        self.write()
        file = playbook if isinstance(playbook, Path) else f"playbooks/{playbook}.yml"
        command: Sequence[str] = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            *("-i", str(self.folder / "inventory"), str(file), *words),
        ]
        began = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        return Run.of_process(done, time.monotonic() - began)

    def secrets(self) -> dict[str, str]:
        """Every token of the site by its path below the folder of secrets."""
        folder = self.folder / "secrets"
        files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pub"]
        return {str(path.relative_to(folder)): path.read_text().strip() for path in files}

    def hang_up(self) -> None:
        """End the connections that Ansible keeps open."""
        for socket in (self.folder / "cp").glob("*"):
            subprocess.run(
                ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "any"],
                capture_output=True, timeout=30, check=False,
            )  # fmt: skip
