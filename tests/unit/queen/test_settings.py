from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.base.tokens import WrongTokenFile
from llama_orch.contract.devices import Remedy
from llama_orch.queen.jobs.executor_lock import AnotherQueen, hold
from llama_orch.queen.settings import ENV_PREFIX, PROGRAM, QueenSettings
from llama_orch.web.settings import WrongSetting, load


def read(tmp_path: Path, text: str = "", *flags: str, **environ: str) -> QueenSettings:
    path = tmp_path / "queen.toml"
    path.write_text(text)
    argv = ["--config", str(path), *flags]
    return load(QueenSettings, program=PROGRAM, env_prefix=ENV_PREFIX, argv=argv, environ=environ)


def test_paths_follow_from_the_project(tmp_path: Path):
    settings = read(tmp_path, f'project_dir = "{tmp_path}"\n')
    assert settings.inventory == tmp_path / "inventory" and settings.secrets == tmp_path / "secrets"
    assert settings.ssh_key == tmp_path / "secrets" / "ssh" / "id_ed25519"
    assert settings.store_url == f"sqlite:///{tmp_path}/.llama-orch/queen/queen.sqlite"


def test_flag_over_environment_over_file(tmp_path: Path):
    text = "port = 1\nhive_port = 2\nmax_concurrent_jobs = 3\n"
    settings = read(tmp_path, text, "--port", "9", LLAMA_ORCH_QUEEN_PORT="8", LLAMA_ORCH_QUEEN_HIVE_PORT="7")
    assert (settings.port, settings.hive_port, settings.max_concurrent_jobs) == (9, 7, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "'prot'"),
        ("port = 70000", "'port'"),
        ('default_ssh_user = "Root; rm"', "'default_ssh_user'"),
        ('database_url = "postgresql://x"', "or give sqlite:///PATH or postgresql"),
        ("probe_interval_s = 0", "'probe_interval_s'"),
        ('remedies_allowed = ["rm_rf"]', "'remedies_allowed"),
        ("remedy_interval_s = 1", "'remedy_interval_s'"),
        ("provision_on_inventory_change = 7", "'provision_on_inventory_change'"),
    ],
)
def test_a_wrong_one_is_named(tmp_path: Path, text: str, words: str):
    with pytest.raises(WrongSetting, match=words):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "given",
    [
        "postgresql+psycopg://queen:s3cret@h/db",
        "postgresql+psycopg://queen:s3c/ret@h:5432/db",
        "postgresql+psycopg://queen:s3c@ret@h/db",
        "postgresql+psycopg://queen@h/db?password=s3cret",
        "postgresql+psycopg://queen@h/db?sslpassword=s3cret",
        "postgresql://queen:s3cret@h/db",
    ],
)
def test_a_password_in_the_databases_url_is_refused_and_not_shown(tmp_path: Path, given: str):
    with pytest.raises(WrongSetting, match=r"'database_url' in .*: ") as refused:
        read(tmp_path, f'database_url = "{given}"')
    assert not any(part in str(refused.value) for part in ("s3c", "ret@"))
    if given.startswith("postgresql+psycopg"):
        assert "0600" in str(refused.value) and "database_password_file" in str(refused.value)


@pytest.mark.parametrize(
    "given",
    ["sqlite:////srv/password/q.sqlite", "postgresql+psycopg://queen@[::1]:5432/db?sslmode=verify-full",
     "postgresql+psycopg:///db?host=/run/postgresql"],
)  # fmt: skip
def test_a_database_without_a_password_in_its_url(tmp_path: Path, given: str):
    assert read(tmp_path, f'database_url = "{given}"').store_url == given


def test_the_databases_password_is_in_a_file_or_in_systemds_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert read(tmp_path).database_password() is None
    file = tmp_path / "file"
    file.touch(0o600)
    file.write_text("a pass: wörd\n")
    settings = read(tmp_path, f'database_password_file = "{file}"')
    assert settings.database_password() == "a pass: wörd"
    file.chmod(0o640)
    with pytest.raises(WrongTokenFile, match=f"run chmod 600 {file}"):
        settings.database_password()
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "database-password").write_text("systemd's\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert read(tmp_path).database_password() == "systemd's"


def test_remedies_are_a_list_in_the_file_and_a_row_elsewhere(tmp_path: Path):
    assert read(tmp_path).remedies_allowed == []
    listed = read(tmp_path, 'remedies_allowed = ["reset_gpu", "reboot"]')
    in_a_row = read(tmp_path, LLAMA_ORCH_QUEEN_REMEDIES_ALLOWED="reset_gpu, reboot")
    assert listed.remedies_allowed == in_a_row.remedies_allowed == [Remedy.RESET_GPU, Remedy.REBOOT]


def test_two_queens_do_not_share_a_folder(tmp_path: Path):
    with hold(tmp_path), pytest.raises(AnotherQueen, match=str(tmp_path)):
        hold(tmp_path)
    hold(tmp_path).close()
