"""The files of a home: secrets, settings of queen and hive, inventory. Written whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llama_orch.base import files

# Settings that `up` decides; the environment may set the others.
OWNED_SETTINGS = (
    *("config", "hive_id", "host", "port", "advertise_host", "hive_port"),
    *("state_dir", "models_dir", "log_dir", "data_dir", "inventory_dir"),
    *("secrets_dir", "api_token_file", "inference_token_file"),
)

_INVENTORY = """\
# Made by `llama-orch up`; yours to edit. Hosts that you add show in `llama-orch nodes list`.
hives:
  hosts:
    local:
      ansible_connection: local
      ansible_host: {address}
      hive_address: {address}
      hive_port: {port}
"""


def write(path: Path, content: str, *, mode: int = 0o600) -> None:
    """Put `content` into `path`, whole or not at all, in a folder of one's own. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_text(path, content, mode)


def link_hive_token(folder: Path, node: str) -> None:
    """Let the queen find this machine's one api-token as that of the node `node`."""
    link = folder / "hives" / node
    link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to("../api-token")


def write_settings(home: Path, address: str, queen_port: int, hive_port: int) -> None:
    """`hive.toml` and `queen.toml` for services of this machine alone."""
    api_token = home / "secrets" / "api-token"
    hive = {
        "hive_id": "local",
        "host": address,
        "port": hive_port,
        "state_dir": home / "hive" / "state",
        "models_dir": home / "models",
        "log_dir": home / "log",
        "api_token_file": api_token,
        "inference_token_file": home / "secrets" / "inference-token",
    }
    queen = {
        "host": address,
        "port": queen_port,
        "data_dir": home / "queen",
        "inventory_dir": home / "inventory",
        "secrets_dir": home / "secrets",
        "api_token_file": api_token,
        "hive_port": hive_port,
    }
    for name, values in (("hive", hive), ("queen", queen)):
        write(home / f"{name}.toml", "# Written by `llama-orch up` at each start.\n" + _toml(values))


def _toml(values: dict[str, str | int | Path]) -> str:
    # JSON's strings and numbers are TOML's as well.
    return "".join(
        f"{key} = {json.dumps(value if isinstance(value, int) else str(value), ensure_ascii=False)}\n"
        for key, value in values.items()
    )


def write_inventory(folder: Path, address: str, port: int) -> None:
    """`hosts.yml` with this machine as node `local`; a file that its user has changed stays as it is."""
    path = folder / "hosts.yml"
    wanted = _INVENTORY.format(address=address, port=port)
    if path.exists() and _without_port(path.read_text(encoding="utf-8")) != _without_port(wanted):
        return
    write(path, wanted, mode=0o644)


def _without_port(text: str) -> str:
    return re.sub(r"hive_port: \d+", "hive_port:", text)
