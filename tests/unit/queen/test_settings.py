from __future__ import annotations

from pathlib import Path

import pytest

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


def test_remedies_are_a_list_in_the_file_and_a_row_elsewhere(tmp_path: Path):
    assert read(tmp_path).remedies_allowed == []
    listed = read(tmp_path, 'remedies_allowed = ["reset_gpu", "reboot"]')
    in_a_row = read(tmp_path, LLAMA_ORCH_QUEEN_REMEDIES_ALLOWED="reset_gpu, reboot")
    assert listed.remedies_allowed == in_a_row.remedies_allowed == [Remedy.RESET_GPU, Remedy.REBOOT]


def test_two_queens_do_not_share_a_folder(tmp_path: Path):
    with hold(tmp_path), pytest.raises(AnotherQueen, match=str(tmp_path)):
        hold(tmp_path)
    hold(tmp_path).close()
