"""What installs the packages that tests need: on a real machine, with a real package that has a service."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .debs import write_index
from .machines import Fleet, Host

pytestmark = pytest.mark.hosts
SCRIPT = Path(__file__).with_name("install-packages")
UNIT = """[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""
# As debhelper writes them for each package with a service, openssh-server among them.
POSTINST = """#!/bin/sh
set -e
deb-systemd-helper unmask greeter.service
deb-systemd-helper --quiet was-enabled greeter.service && deb-systemd-helper enable greeter.service
systemctl --system daemon-reload
deb-systemd-invoke start greeter.service
"""


@pytest.fixture(scope="module")
def host(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A machine whose apt knows a package `greeter`, and that has the script."""
    folder = fleet.state_dir / "packages" / "greeter"
    folder.mkdir()
    source = tmp_path_factory.mktemp("greeter")
    for path, text, mode in (
        ("lib/systemd/system/greeter.service", UNIT, 0o644),
        ("DEBIAN/postinst", POSTINST, 0o755),
        ("DEBIAN/control", "Package: greeter\nVersion: 1\nArchitecture: all\nMaintainer: t <t@example.com>\n"
         "Description: serves\n", 0o644),
    ):  # fmt: skip
        file = source / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
    subprocess.run(["dpkg-deb", "--build", source, folder], check=True, capture_output=True, timeout=60)
    write_index(folder)
    host = fleet.boot("installed")
    host.write_file("/etc/apt/sources.list.d/greeter.list", f"deb [trusted=yes] {fleet.packages_url}/greeter ./\n")
    host.run("mkdir /root/hosts", check=True)
    host.write_file("/root/hosts/install-packages", SCRIPT.read_text(), mode="0755")
    host.write_file("/root/hosts/packages.txt", "# A comment\ngreeter\nutil-linux\n")
    yield host
    fleet.remove("installed")


def service(host: Host) -> list[str]:
    """Whether it runs, and whether it would begin with the machine."""
    return host.run("systemctl is-active greeter; systemctl is-enabled greeter").stdout.split()


def test_what_is_missing_is_installed_and_serves_nothing(host: Host) -> None:
    host.run("apt-get update -q && apt-get install -q -y greeter", check=True)
    assert service(host) == ["active", "enabled"], "without the script it serves"
    host.run("apt-get purge -q -y greeter && systemctl stop greeter; systemctl daemon-reload", check=True)

    said = host.run("/root/hosts/install-packages", check=True).stdout
    assert said == "installing greeter\n"
    assert host.run("dpkg-query --show --showformat='${Status}' greeter").stdout == "install ok installed"
    assert service(host) == ["inactive", "disabled"]
    assert host.run("test -e /usr/sbin/policy-rc.d").returncode == 1
    assert host.run("/root/hosts/install-packages", check=True).stdout == ""


def test_a_machines_own_policy_stays(host: Host) -> None:
    host.run("apt-get purge -q -y greeter", check=True)
    host.write_file("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode="0755")
    host.run("/root/hosts/install-packages", check=True)
    assert service(host) == ["inactive", "disabled"]
    assert host.read_file("/usr/sbin/policy-rc.d") == "#!/bin/sh\nexit 101\n"
