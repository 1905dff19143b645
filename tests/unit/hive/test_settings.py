from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.base.tokens import WrongTokenFile
from llama_orch.hive.settings import ENV_PREFIX, GIB, HiveSettings, find_token
from llama_orch.web.settings import WrongSetting, load


def settings(*argv: str, **environ: str) -> HiveSettings:
    return load(HiveSettings, program="llama-orch-hive", env_prefix=ENV_PREFIX, argv=argv, environ=environ)


def test_defaults_are_those_of_the_documentation():
    found = settings()
    assert (found.port, found.worker_port_min, found.worker_port_max) == (8081, 8100, 8199)
    assert (found.reserve_ram_bytes, found.reserve_gpu_bytes) == (2 * GIB, GIB)
    assert (found.ready_timeout_s, found.drain_timeout_s, found.term_timeout_s) == (300, 30, 10)
    assert found.state_dir == Path("/var/lib/llama-orch/data")
    assert found.hive_id


def test_flag_over_environment_over_file(tmp_path: Path):
    file = tmp_path / "hive.toml"
    file.write_text('port = 1001\nhive_id = "file"\nadvertise_host = "file"\n')
    found = settings(
        "--config", str(file), "--port", "1003", LLAMA_ORCH_HIVE_PORT="1002", LLAMA_ORCH_HIVE_HIVE_ID="env"
    )
    assert (found.port, found.hive_id, found.advertise_host) == (1003, "env", "file")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("prot = 8081", "prot"),
        ("port = 70000", "port"),
        ('hive_id = "{{ x }}"', "hive_id"),
        ("worker_port_min = 8200", "worker_port_max is less"),
        ('hub_endpoint = "ftp://x"', "hub_endpoint"),
        ("reserve_ram_bytes = -1", "reserve_ram_bytes"),
        ("ready_timeout_s = 0", "ready_timeout_s"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path: Path, line: str, named: str):
    file = tmp_path / "hive.toml"
    file.write_text(line + "\n")
    with pytest.raises(WrongSetting, match=named) as wrong:
        settings("--config", str(file))
    assert str(file) in str(wrong.value)


def test_disk_reserve_is_the_lesser_of_ten_gib_and_a_twentieth():
    assert settings().reserved_disk(100 * GIB) == 5 * GIB
    assert settings().reserved_disk(1000 * GIB) == 10 * GIB
    assert settings("--reserve-disk-bytes", "7").reserved_disk(1000 * GIB) == 7


def test_a_worker_is_advertised_where_it_can_be_reached():
    assert settings("--host", "10.1.2.3").worker_address() == "10.1.2.3"
    assert settings("--host", "10.1.2.3", "--advertise-host", "hive.example").worker_address() == "hive.example"
    assert settings().worker_address() not in {"0.0.0.0", ""}


def test_tokens_from_settings_and_from_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert find_token("", "api-token") is None
    secret = tmp_path / "api-token"
    secret.write_text("0123456789abcdef\n")
    secret.chmod(0o600)
    assert find_token(str(secret), "x").matches("0123456789abcdef")  # pyright: ignore[reportOptionalMemberAccess]
    secret.chmod(0o640)
    with pytest.raises(WrongTokenFile, match="chmod 600"):
        find_token(str(secret), "x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert find_token("", "api-token") is not None
    assert find_token("", "other-token") is None
