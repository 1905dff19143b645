from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llama_orch.queen.ansible.ssh_keys import (
    KnownHosts,
    NoHostKey,
    NoSshKey,
    RecordedKey,
    ensure_key_pair,
    entry_of,
    host_key_fingerprint,
    public_key,
)


def test_a_pair_is_made_once_and_mended(tmp_path: Path):
    private = tmp_path / "ssh" / "id_ed25519"
    ensure_key_pair(private)
    key = public_key(private)
    assert private.stat().st_mode & 0o777 == 0o600 and private.parent.stat().st_mode & 0o777 == 0o700
    public = private.with_name("id_ed25519.pub")
    shown = subprocess.run(["ssh-keygen", "-lf", public], capture_output=True, text=True, check=True)
    assert key.fingerprint in shown.stdout and key.public_key.startswith("ssh-ed25519 ")
    assert sorted(path.name for path in private.parent.iterdir()) == ["id_ed25519", "id_ed25519.pub"]
    public.unlink()
    ensure_key_pair(private)
    assert public_key(private).fingerprint == key.fingerprint
    public.write_text("nonsense")
    with pytest.raises(NoSshKey):
        public_key(private)


def test_known_hosts_are_read_and_forgotten(tmp_path: Path):
    private = tmp_path / "k"
    ensure_key_pair(private)
    blob = public_key(private).public_key.split()[1]
    path = tmp_path / "known_hosts"
    known = KnownHosts(path)
    assert known.key_of("10.0.0.1", 22) is None
    path.write_text(
        f"# a comment\n10.0.0.1 ssh-rsa {blob}\n10.0.0.1 ssh-ed25519 {blob}\n"
        f"[box.example]:2222 ssh-ed25519 {blob}\nbad\n"
    )
    first = known.key_of("10.0.0.1", 22)
    assert first is not None and (first.type, first.fingerprint) == ("ssh-ed25519", public_key(private).fingerprint)
    assert known.key_of("Box.Example", 2222) is not None and known.key_of("box.example", 22) is None
    known.forget("10.0.0.1", 22)
    assert known.key_of("10.0.0.1", 22) is None and known.key_of("box.example", 2222) is not None
    assert "# a comment" in path.read_text() and path.stat().st_mode & 0o777 == 0o600


def test_a_key_from_first_contact_is_marked_until_it_is_confirmed(tmp_path: Path):
    private = tmp_path / "k"
    ensure_key_pair(private)
    key = public_key(private)
    kind, blob, _ = key.public_key.split()
    shown = RecordedKey("[box]:2222", kind, blob, "")
    known = KnownHosts(tmp_path / "known_hosts")
    known.add([shown], confirmed=False)
    entry = entry_of("Box", 2222)
    assert [found.confirmed for found in known.keys_of(entry)] == [False]
    # It shows another one: nothing is added to what is known.
    known.add([RecordedKey("[box]:2222", "ssh-rsa", blob, "")], confirmed=True)
    assert len(known.keys_of(entry)) == 1
    known.confirm(entry, key.fingerprint)
    assert [found.confirmed for found in known.keys_of(entry)] == [True]
    # ssh reads it as before; a line of somebody's own is as good as a confirmed one.
    found = subprocess.run(["ssh-keygen", "-F", "[box]:2222", "-f", known.path], capture_output=True, check=True)
    assert blob.encode() in found.stdout
    known.path.write_text(f"other {kind} {blob} from the console\n")
    assert [one.confirmed for one in known.keys_of("other")] == [True]


@pytest.mark.parametrize("given", ["SHA256:short", "ssh-ed25519 AAAA", "", "ssh-ed25519 AAAAC3Nz" + "A" * 41])
def test_what_is_no_host_key_has_no_fingerprint(given: str):
    with pytest.raises(NoHostKey, match="ssh-keygen -lf"):
        host_key_fingerprint(given)


def test_a_line_has_the_fingerprint_that_ssh_keygen_shows(tmp_path: Path):
    ensure_key_pair(tmp_path / "k")
    key = public_key(tmp_path / "k")
    assert host_key_fingerprint(key.public_key) == host_key_fingerprint(key.fingerprint) == key.fingerprint
