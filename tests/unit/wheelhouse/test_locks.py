from __future__ import annotations

from pathlib import Path

import pytest

from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.locks import Target, pin_named, pins_for, read_lock

DIGEST = "sha256:" + "0" * 64
REQUIREMENTS = Path(__file__).parents[3] / "agent" / "requirements"


def lock(folder: Path, text: str) -> Path:
    path = folder / "hive.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_lock_is_read_with_markers_and_hashes(tmp_path: Path) -> None:
    path = lock(
        tmp_path,
        f"# made\nalpha==1.0 \\\n    --hash={DIGEST} \\\n    --hash={DIGEST.replace('0', '1')}\n"
        f"beta[extra]==2.0 ; sys_platform == 'win32' \\\n    --hash={DIGEST}\n",
    )

    alpha, beta = read_lock(path)

    assert (alpha.name, alpha.version, alpha.marker, len(alpha.hashes)) == ("alpha", "1.0", "", 2)
    assert (beta.name, beta.version, beta.marker) == ("beta", "2.0", "sys_platform == 'win32'")
    assert alpha.requirement().startswith(f"alpha==1.0 --hash={DIGEST} --hash=")


@pytest.mark.parametrize("line", ["alpha>=1.0 --hash=" + DIGEST, "alpha==1.0", "-r other.txt", "git+https://x/y"])
def test_a_line_without_version_or_hash_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(WheelhouseError, match="make lock"):
        read_lock(lock(tmp_path, line + "\n"))


def test_a_missing_lock_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(WheelhouseError, match="make lock"):
        read_lock(tmp_path / "hive.txt")


def test_markers_are_judged_for_the_target_and_not_for_this_python(tmp_path: Path) -> None:
    path = lock(
        tmp_path,
        f"old==1 ; python_full_version < '3.12' --hash={DIGEST}\n"
        f"new==1 ; python_full_version >= '3.12' --hash={DIGEST}\n"
        f"windows==1 ; sys_platform == 'win32' --hash={DIGEST}\n",
    )

    def names(python: str) -> list[str]:
        return [pin.name for pin in pins_for(read_lock(path), Target(python))]

    assert names("3.11") == ["old"]
    assert names("3.13") == ["new"]


@pytest.mark.parametrize("part", ["hive", "queen", "dev", "pip", "cuda13", "cuda12"])
def test_our_locks_are_whole_and_name_no_index(part: str) -> None:
    path = REQUIREMENTS / f"{part}.txt"

    assert read_lock(path)
    assert "://" not in path.read_text(encoding="utf-8")


def test_ansible_never_lands_on_a_hive_nor_llama_on_the_queen() -> None:
    hive = {pin.name for pin in read_lock(REQUIREMENTS / "hive.txt")}
    queen = {pin.name for pin in read_lock(REQUIREMENTS / "queen.txt")}

    assert "llama-cpp-python" in hive and not hive & {"ansible-core", "ansible-runner", "dbos"}
    assert "ansible-core" in queen and "llama-cpp-python" not in queen


def test_a_pin_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WheelhouseError, match="gamma"):
        pin_named(read_lock(lock(tmp_path, f"alpha==1 --hash={DIGEST}\n")), "gamma")
