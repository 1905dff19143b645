"""What a hive's operator may set, and where it finds its secrets."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from llama_orch.base import tokens
from llama_orch.contract.patterns import Network, WebOrigin
from llama_orch.web.settings import Settings

PROGRAM = "llama-orch-hive"
ENV_PREFIX = "LLAMA_ORCH_HIVE_"
GIB = 1024**3
DISK_SHARE = 0.05


def _machine_name() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:63].strip("-") or "hive"


class HiveSettings(Settings):
    """The hive agent: downloads models, starts and watches workers, tells what the machine has."""

    hive_id: str = Field(
        default_factory=_machine_name, pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,62}$", description="name of this hive"
    )
    host: str = Field(default="0.0.0.0", min_length=1, description="address that agent and workers listen on")  # noqa: S104
    port: int = Field(default=8081, ge=1, le=65535, description="port of the agent")
    advertise_host: str = Field(default="", description="address in a worker's url; empty finds one")
    state_dir: Path = Field(default=Path("/var/lib/llama-orch/data"), description="records of workers and downloads")
    models_dir: Path = Field(default=Path("/var/lib/llama-orch/models"), description="the hub's cache")
    log_dir: Path = Field(default=Path("/var/log/llama-orch"), description="what workers print")
    api_token_file: str = Field(default="", description="file with the token of this API")
    inference_token_file: str = Field(default="", description="file with this hive's token of the workers' /v1 API")
    fleet_inference_token_file: str = Field(default="", description="file with one that workers of all hives take too")
    worker_port_min: int = Field(default=8100, ge=1, le=65535, description="first port for workers")
    worker_port_max: int = Field(default=8199, ge=1, le=65535, description="last port for workers")
    gateways: list[Network] = Field(
        default_factory=list[Network],
        max_length=256,
        description="addresses or networks of gateways, which may name the scope of a request",
    )
    cors_origins: list[WebOrigin] = Field(
        default_factory=list[WebOrigin],
        max_length=256,
        description="origins whose web pages may ask this hive and its workers; '*' is every one",
    )
    confine_workers: bool = Field(default=True, description="whether workers can reach no files but those they need")
    hub_endpoint: str = Field(default="", pattern=r"^(https?://.+)?$", description="another hub's URL")
    hub_token_file: str = Field(default="", description="file with a token of the hub, for gated models")
    reserve_ram_bytes: int = Field(default=2 * GIB, ge=0, description="memory that workers leave free")
    reserve_gpu_bytes: int = Field(default=GIB, ge=0, description="GPU memory that workers leave free")
    reserve_disk_bytes: int = Field(default=0, ge=0, description="disk to leave free; 0: 10 GiB or 5 %, the lesser")
    ready_timeout_s: float = Field(default=300, gt=0, description="seconds until a worker is ready, plus 20 per GB")
    drain_timeout_s: float = Field(default=30, ge=0, description="seconds for running answers when a worker stops")
    term_timeout_s: float = Field(default=10, ge=0, description="seconds from SIGTERM to SIGKILL")
    max_concurrent_downloads: int = Field(default=2, ge=1, le=16, description="downloads at the same time")
    download_attempts: int = Field(default=10, ge=1, description="tries without progress until a download fails")
    download_stall_s: float = Field(default=60, gt=0, description="seconds without a byte until a try is given up")

    @field_validator("gateways", "cors_origins", mode="before")
    @classmethod
    def _named_in_a_row(cls, value: object) -> object:
        # As flags and environment variables say it.
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.worker_port_max < self.worker_port_min:
            raise ValueError("worker_port_max is less than worker_port_min")
        return self

    def reserved_disk(self, total_bytes: int) -> int:
        """How many bytes of a disk of this size stay free."""
        return self.reserve_disk_bytes or min(10 * GIB, int(total_bytes * DISK_SHARE))

    def worker_address(self) -> str:
        """The host part of a worker's url, as others reach this machine."""
        if self.advertise_host:
            return self.advertise_host
        return own_address() if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104  compared, not bound


def own_address() -> str:
    """The address that other machines most likely reach this one by; 127.0.0.1 where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it asks the kernel which address would be used.
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            pass
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def find_token(setting: str, credential: str) -> tokens.Token | None:
    """Read the token that a setting names, or else systemd's credential of that name; None where neither is.

    Raises auth.WrongTokenFile.
    """
    if setting:
        return tokens.read_token(Path(setting))
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder, credential) if folder else None
    return tokens.read_token(path) if path is not None and path.exists() else None
