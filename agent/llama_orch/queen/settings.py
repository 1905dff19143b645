"""The queen's settings and the paths that follow from them."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, field_validator

from llama_orch.base.tokens import read_secret
from llama_orch.contract.devices import Remedy
from llama_orch.contract.patterns import WebOrigin
from llama_orch.web import settings

PROGRAM = "llama-orch-queen"
ENV_PREFIX = "LLAMA_ORCH_QUEEN_"
INSTALLED_PROJECT = Path("/opt/llama-orch/project")


def _project_dir() -> Path:
    checkout = Path(__file__).resolve().parents[3]
    return checkout if (checkout / "playbooks").is_dir() else INSTALLED_PROJECT


class QueenSettings(settings.Settings):
    """llama-orch's control plane: registers nodes, provisions them with Ansible and shows how they are."""

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="port to listen on")
    cors_origins: list[WebOrigin] = Field(
        default_factory=list[WebOrigin],
        max_length=256,
        description="origins whose web pages may ask the queen; '*' is every one",
    )
    project_dir: Path = Field(
        default_factory=_project_dir, description="folder with playbooks, roles, inventory and ansible.cfg"
    )
    data_dir: Path | None = Field(
        default=None, description="the queen's own files; when not set, .llama-orch/queen in project_dir"
    )
    inventory_dir: Path | None = Field(default=None, description="when not set, inventory in project_dir")
    secrets_dir: Path | None = Field(default=None, description="when not set, secrets in project_dir")
    api_token_file: Path | None = Field(
        default=None, description="when not set, api-token in systemd's credentials or secrets_dir, made where missing"
    )
    database_url: str = Field(
        default="",
        repr=False,
        description="when empty, SQLite in data_dir; else sqlite:///PATH or postgresql+psycopg://USER@HOST:PORT/NAME",
    )
    database_password_file: Path | None = Field(
        default=None,
        description="file with the password of database_url; when not set, database-password in systemd's credentials",
    )
    default_ssh_user: str = Field(
        default="", pattern=r"^([a-z_][a-z0-9_-]{0,31})?$", description="login user; when empty, the queen's own"
    )
    provision_on_inventory_change: bool = Field(
        default=False, description="whether a host added to the inventory is provisioned by itself"
    )
    max_concurrent_jobs: int = Field(default=8, ge=1, le=64, description="jobs that run at the same time")
    hive_port: int = Field(default=8081, ge=1, le=65535, description="a hive's port where the inventory names none")
    probe_interval_s: float = Field(default=10, gt=0, le=3600, description="seconds between two questions to a hive")
    probe_timeout_s: float = Field(default=5, gt=0, le=60, description="seconds a hive has for its answer")
    failed_hold_s: float = Field(
        default=60, ge=0, description="seconds a failed node stays failed although its hive answers"
    )
    ssh_connect_timeout_s: int = Field(default=10, ge=1, le=120, description="seconds a host has to accept ssh")
    trust_first_host_key: bool = Field(
        default=False,
        description="whether a password may go to a host whose ssh host key is only known from first contact",
    )
    change_own_machine: bool = Field(
        default=False,
        description="whether nodes with ansible_connection: local, the queen's own machine, are provisioned and mended",
    )
    verify_timeout_s: float = Field(default=60, gt=0, le=600, description="seconds a new hive has for its first answer")
    run_timeout_s: float = Field(default=3600, gt=0, description="seconds one playbook may take")

    remedies_allowed: list[Remedy] = Field(
        default_factory=list[Remedy],
        description="remedies that the queen starts by itself where a condition keeps new workers off a GPU",
    )
    remedy_after_s: float = Field(
        default=300, ge=0, description="seconds that a condition has to last before its remedy begins by itself"
    )
    remedy_interval_s: float = Field(
        default=3600, ge=60, description="seconds between two remedies of one node's condition that begin by themselves"
    )

    @field_validator("remedies_allowed", "cors_origins", mode="before")
    @classmethod
    def _named_in_a_row(cls, value: object) -> object:
        # As flags and environment variables say it.
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value and not value.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise ValueError("leave it empty, or give sqlite:///PATH or postgresql+psycopg://USER@HOST:PORT/NAME")
        user, at, _ = value.partition("://")[2].partition("@")
        named = any("password" in name for name in parse_qs(urlsplit(value).query))
        if named or (at and ":" in user):
            raise ValueError(
                "must hold no password: put that into a file of mode 0600 and name it in database_password_file"
            )
        return value

    @property
    def data(self) -> Path:
        """Database files, known_hosts and the folders of runs."""
        return (self.data_dir or self.project_dir / ".llama-orch" / "queen").absolute()

    @property
    def project(self) -> Path:
        """Where playbooks, roles and ansible.cfg are."""
        return self.project_dir.absolute()

    @property
    def inventory(self) -> Path:
        """The folder that is the inventory."""
        return (self.inventory_dir or self.project_dir / "inventory").absolute()

    @property
    def secrets(self) -> Path:
        """The folder of tokens and of the queen's ssh key."""
        return (self.secrets_dir or self.project_dir / "secrets").absolute()

    @property
    def ssh_key(self) -> Path:
        """The private half of the queen's ssh key."""
        return self.secrets / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """Host keys as first contact recorded them."""
        return self.data / "known_hosts"

    @property
    def reports(self) -> Path:
        """Where the remedy collect_gpu_report puts what it collects."""
        return self.data / "reports"

    @property
    def store_url(self) -> str:
        """Where our own tables are, without a password."""
        return self.database_url or f"sqlite:///{self.data / 'queen.sqlite'}"

    def database_password(self) -> str | None:
        """The password of `database_url`, None where there is none. Raises WrongTokenFile."""
        credentials = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), "database-password")
        path = self.database_password_file or (credentials if credentials.exists() else None)
        return None if path is None else read_secret(path)

    @property
    def login_user(self) -> str:
        """The user for a node that names none."""
        return self.default_ssh_user or getpass.getuser()


def load() -> QueenSettings:
    """This process's settings; a wrong one ends the process with a message."""
    return settings.load_or_exit(QueenSettings, program=PROGRAM, env_prefix=ENV_PREFIX)
