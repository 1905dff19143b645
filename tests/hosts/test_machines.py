"""The test hosts themselves: they are real machines, and they go without a trace."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from . import disks, nspawn
from .fixtures import KeyPair
from .machines import Fleet, Host, HostsError, User

pytestmark = pytest.mark.hosts
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def host(request: pytest.FixtureRequest, fleet: Fleet, login_key: KeyPair) -> Iterator[Host]:
    name = f"machine-{request.param}"
    users: dict[str, User] = {
        "llama-orch": {"sudo": "nopasswd"},
        "typist": {"sudo": "password", "password": "correct horse"},
        "guest": {},
    }
    yield fleet.boot(name, suite=request.param, users=users, authorized_keys=[login_key.public])
    fleet.remove(name)


@pytest.fixture
def bare(request: pytest.FixtureRequest, fleet: Fleet, login_key: KeyPair) -> Iterator[Host]:
    yield fleet.boot("bare", suite=request.param, python=False, authorized_keys=[login_key.public])
    fleet.remove("bare")


def test_reaches_running_with_no_failed_unit(host: Host) -> None:
    assert host.wait_system() == "running"
    assert host.run("systemctl --failed --no-legend", check=True).stdout == ""
    assert f"VERSION_CODENAME={host.suite}" in host.read_file("/etc/os-release")
    assert host.run("hostname", check=True).stdout.strip() == host.name


def test_users_log_in_by_key_with_the_sudo_they_were_given(host: Host, login_key: KeyPair) -> None:
    free = host.ssh("llama-orch", login_key.private, "sudo -n id -u")
    assert (free.returncode, free.stdout) == (0, "0\n"), free.stderr

    asked = host.ssh("typist", login_key.private, "sudo -n id -u")
    assert asked.returncode == 1
    assert "password is required" in asked.stderr
    typed = host.ssh("typist", login_key.private, "sudo -S -p '' id -u", stdin="correct horse\n")
    assert (typed.returncode, typed.stdout) == (0, "0\n"), typed.stderr
    wrong = host.ssh("typist", login_key.private, "sudo -S -p '' id -u", stdin="horse\n")
    assert wrong.returncode == 1

    none = host.ssh("guest", login_key.private, "sudo -n id -u")
    assert none.returncode == 1
    stranger = host.ssh("root", login_key.private, "id -u")
    assert stranger.returncode == 255
    assert "Permission denied" in stranger.stderr


def test_a_power_cut_keeps_the_disk_and_nothing_else(host: Host, login_key: KeyPair) -> None:
    host.write_file("/etc/kept", "still here\n", mode="0600")
    host.run("touch /run/lost; systemd-run --unit=witness sleep 600", check=True)
    before = host.host_key

    host.power_cut()
    assert not host.running
    assert not host.answers()
    with pytest.raises(HostsError, match="is off"):
        host.run("true")
    assert host.run_offline("cat /etc/kept") == "still here\n"

    host.boot_again()
    assert host.read_file("/etc/kept") == "still here\n"
    assert host.run("stat -c %a /etc/kept").stdout == "600\n"
    assert host.run("test -e /run/lost").returncode == 1
    assert host.run("systemctl is-active witness").stdout.strip() == "inactive"
    assert host.host_key == before
    assert host.ssh("llama-orch", login_key.private, "true").returncode == 0


def test_power_off_lets_services_end_in_order(host: Host) -> None:
    # Inside braces systemd itself would expand "$(...)": the shell comes from a file.
    host.write_file("/usr/local/bin/parting", "#!/bin/sh\necho said goodbye > /etc/parting\n", mode="0755")
    host.run("systemd-run --unit=polite -p ExecStop=/usr/local/bin/parting sleep 600", check=True)
    host.power_off()
    assert not host.running
    assert host.run_offline("cat /etc/parting") == "said goodbye\n"
    host.boot_again()


def test_a_cut_cable_is_seen_by_both_ends(host: Host) -> None:
    assert host.answers()
    host.cut_cable()
    assert not host.answers(connect_timeout=0.3)
    assert host.run("cat /sys/class/net/host0/carrier").stdout.strip() == "0"
    host.mend_cable()
    host.wait_for_ssh(10)


def test_dropped_packets_leave_the_carrier(host: Host) -> None:
    host.drop_packets()
    assert not host.answers(connect_timeout=0.3)
    assert host.run("cat /sys/class/net/host0/carrier").stdout.strip() == "1"
    host.pass_packets()
    host.wait_for_ssh(10)


@pytest.mark.parametrize("direction", ["to", "from"])
def test_packets_are_lost_in_one_direction_alone(host: Host, direction: Literal["to", "from"]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind((host.bridge.address, 0))
        heard.settimeout(0.5)
        host.lose_packets(direction)
        try:
            assert not host.answers(connect_timeout=0.3)
            host.run(f"echo still here > /dev/udp/{host.bridge.address}/{heard.getsockname()[1]}", check=True)
            if direction == "to":
                assert heard.recv(100) == b"still here\n"
            else:
                with pytest.raises(TimeoutError):
                    heard.recv(100)
        finally:
            host.lose_no_packets()
    host.wait_for_ssh(10)


def test_a_small_disk_is_full_by_itself_and_outlives_a_power_cut(fleet: Fleet) -> None:
    host = fleet.boot("small", small_disk="/var/small")
    host.run("echo kept > /var/small/kept && sync", check=True)
    filled = host.run("cat /dev/zero > /var/small/filler")
    assert "No space left on device" in filled.stderr
    host.run("echo room > /var/elsewhere", check=True)
    host.power_cut()
    assert host.run_offline("cat /var/small/kept") == "kept\n"
    host.boot_again()
    assert host.read_file("/var/small/kept") == "kept\n"
    assert (host.root / "var/small/kept").read_text() == "kept\n"
    fleet.remove("small")
    assert not disks.in_use(host.folder / disks.IMAGE)


def test_hosts_see_each_other_and_their_services_are_their_own(fleet: Fleet, host: Host) -> None:
    other = fleet.boot("neighbour", suite=host.suite)
    try:
        greeting = f"exec 3<>/dev/tcp/{other.address}/22; head -c 4 <&3"
        assert host.run(greeting, check=True, timeout=10).stdout == "SSH-"
        assert other.host_key != host.host_key
        assert other.read_file("/etc/machine-id") != host.read_file("/etc/machine-id")
        # Two machines in one control group would stop each other's services.
        other.run("systemctl stop ssh.service", check=True)
        assert host.run("systemctl is-active ssh.service").stdout.strip() == "active"
        assert host.answers()
    finally:
        fleet.remove("neighbour")


def test_there_is_no_way_out(host: Host) -> None:
    done = host.run("exec 3<>/dev/tcp/192.0.2.1/80", timeout=10)
    assert done.returncode != 0
    assert "unreachable" in done.stderr


def test_what_services_are_confined_with_works(host: Host) -> None:
    host.write_file("/etc/secret-of-test", "hidden\n", mode="0600")
    confined = [
        "systemd-run", "--wait", "--pipe", "--quiet",
        "-p", "LoadCredential=token:/etc/secret-of-test", "-p", "DynamicUser=yes", "-p", "ProtectSystem=strict",
        "-p", "NoNewPrivileges=yes", "-p", "DevicePolicy=closed", "-p", "PrivateTmp=yes",
        "bash", "-c", "cat $CREDENTIALS_DIRECTORY/token; touch /usr/x 2>/dev/null || echo read-only",
    ]  # fmt: skip
    assert host.run(confined, check=True).stdout == "hidden\nread-only\n"


@pytest.mark.parametrize("bare", ["bookworm", "trixie"], indirect=True)
def test_a_bare_host_gets_python_from_the_served_packages(bare: Host, login_key: KeyPair) -> None:
    assert bare.run("ls /usr/bin/python*").returncode != 0
    without = bare.ssh("llama-orch", login_key.private, "python3 --version")
    assert without.returncode == 127, without.stdout
    bare.run("apt-get update -q && apt-get install -q -y python3 ca-certificates acl", check=True, timeout=120)
    assert bare.run("python3 -c 'print(6 * 7)'", check=True).stdout == "42\n"
    assert bare.wait_system() == "running"


def test_a_host_with_minimal_python_lacks_most_of_its_library(fleet: Fleet) -> None:
    host = fleet.boot("minimal", python="minimal")
    assert host.run("python3 -c 'print(6 * 7)'").stdout == "42\n"
    assert host.run("python3 -c 'import json'").returncode == 1
    fleet.remove("minimal")


def test_a_name_is_taken_once(fleet: Fleet, host: Host) -> None:
    with pytest.raises(HostsError, match="already"):
        fleet.boot(host.name, suite=host.suite)
    with pytest.raises(HostsError, match="host name"):
        fleet.boot("../evil")


def links() -> set[str]:
    return set(os.listdir("/sys/class/net"))  # noqa: PTH208


def test_the_commands_keep_a_host_and_take_it_down_without_a_trace(
    tmp_path: Path, login_key: KeyPair, fleet: Fleet
) -> None:
    state = tmp_path / "state"
    key = tmp_path / "key.pub"
    key.write_text(login_key.public + "\n")

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.hosts.machines", *words, "--state-dir", str(state)],
            cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    before = links()
    first = json.loads(command("up", "one", "--user", "login", "--authorized-key", str(key)))
    assert json.loads(command("up", "one")) == first
    command("up", "two", "--suite", "trixie", "--no-python")
    assert [one["name"] for one in json.loads(command("list"))] == ["one", "two"]
    kept = Fleet(state, persistent=True)
    assert kept.bridge.subnet != fleet.bridge.subnet
    assert kept.host("one").ssh("login", login_key.private, "sudo -n hostname").stdout == "one\n"

    command("down", "two")
    assert [one["name"] for one in json.loads(command("list"))] == ["one"]
    command("power-cut", "one")
    assert json.loads(command("list"))[0]["running"] is False
    assert json.loads(command("up", "one"))["address"] == first["address"]
    command("down")
    assert links() == before
    assert f"{first['bridge']}" not in nspawn.groups()
    assert "lorch" not in Path("/proc/mounts").read_text()
    assert not list(state.glob("hosts/*"))


def test_what_a_killed_run_left_is_cleared_by_the_next(tmp_path: Path, fleet: Fleet) -> None:
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from tests.hosts.machines import Fleet
        fleet = Fleet(Path(sys.argv[1]))
        fleet.open()
        print(fleet.boot("orphan").bridge.name, flush=True)
        time.sleep(600)
    """)
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "dead")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    bridge = child.stdout.readline().strip()
    child.send_signal(signal.SIGKILL)
    child.wait(20)
    child.stdout.close()
    assert nspawn.pids(bridge), "the orphan should have outlived its owner"

    with Fleet(tmp_path / "next") as following:
        # The next fleet takes the first free subnet, so it may be the one that the dead run had.
        if following.bridge.name != bridge:
            assert bridge not in links()
        assert not nspawn.pids(f"{bridge}/2")
        booted = following.boot("fresh")
        assert booted.run("hostname").stdout == "fresh\n"
    assert bridge not in links()
    assert fleet.bridge.exists(), "a living fleet is left alone"


def test_images_come_from_the_cache(fleet: Fleet) -> None:
    began = time.monotonic()
    fleet.boot("quick")
    assert time.monotonic() - began < 15
    fleet.remove("quick")
