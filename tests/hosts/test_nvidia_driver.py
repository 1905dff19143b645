"""The driver from NVIDIA's repository, and hosts that get none: on real machines, with GPUs that are shown to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.playbook_run import Run

from . import gpu
from .fixtures import KeyPair
from .machines import Fleet, Host
from .nvidia_repository import NvidiaRepository
from .site import Site

pytestmark = pytest.mark.hosts
# What playbooks/hive.yml does before it makes a hive, and no hive: its roles are what takes long.
PLAYBOOK = """
- hosts: hives
  gather_facts: false
  become: true
  tasks:
    - ansible.builtin.import_role: {name: preflight, tasks_from: bootstrap}
    - ansible.builtin.import_role: {name: preflight, tasks_from: host}
    - ansible.builtin.include_role: {name: nvidia_driver}
      when: remove_driver is not defined
    - ansible.builtin.include_role: {name: nvidia_driver, tasks_from: remove}
      when: remove_driver is defined
- hosts: "{{ groups['nvidia_driver_reboot'] | default([]) }}"
  gather_facts: false
  become: true
  serial: 1
  tasks:
    - ansible.builtin.include_role: {name: nvidia_driver, tasks_from: reboot}
- hosts: hives
  gather_facts: false
  tasks:
    - ansible.builtin.assert:
        that: nvidia_driver_problem is not defined
        fail_msg: "{{ nvidia_driver_problem | default('') }}"
"""
BLACKWELL, AMPERE, KEPLER = "2b85", "2204", "102d"
CUDA = {"runtime": "13.0", "least_driver": "580.65.06", "architectures": [86, 120]}
KEYS = {"debian12": "3bf863cc.pub", "debian13": "8793F200.pub"}
RELEASES = {"bookworm": "debian12", "trixie": "debian13"}
ASKED = ["nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-modprobe", "nvidia-persistenced"]
VERSIONS = ("580.126.09-1", "595.58.03-1", "620.10.01-1")


@pytest.fixture(scope="module")
def repository(fleet: Fleet) -> Iterator[NvidiaRepository]:
    made = NvidiaRepository(fleet.state_dir / "packages" / "nvidia")
    for distribution, key in KEYS.items():
        made.add(distribution, key, VERSIONS)
    yield made
    made.close()


@pytest.fixture
def hosts(fleet: Fleet, login_key: KeyPair) -> Iterator[list[Host]]:
    """One of each release; a run plays on both."""
    names = {f"gpu-{suite}": suite for suite in RELEASES}
    yield [fleet.boot(name, suite=suite, authorized_keys=[login_key.public]) for name, suite in names.items()]
    for name in names:
        fleet.remove(name)


@pytest.fixture
def site(tmp_path: Path, login_key: KeyPair, hosts: list[Host], fleet: Fleet) -> Iterator[Site]:
    (tmp_path / "driver.yml").write_text(PLAYBOOK)
    variables = {"nvidia_driver_cuda": CUDA, "nvidia_driver_repository_url": f"{fleet.packages_url}/nvidia"}
    made = Site(tmp_path, login_key, {host.name: host for host in hosts}, variables=variables)
    yield made
    made.hang_up()


def play(site: Site, *words: str) -> Run:
    return site.play(site.folder / "driver.yml", *words)


def said(run: Run, host: Host, words: str) -> bool:
    """Whether the run failed on that host with these words; tells the end of the output where not."""
    assert run.failed[host.name] and words in run.of(host.name), run.output[-3600:]
    return True


def packages_of(host: Host) -> dict[str, str]:
    listed = host.run(["dpkg-query", "--show", "--showformat=${Package} ${Version}\n"], check=True).stdout
    return dict(line.split() for line in listed.splitlines() if "nvidia" in line)


def candidate(host: Host, package: str) -> str:
    policy = host.run(["env", "LC_ALL=C", "apt-cache", "policy", package], check=True).stdout
    return next(line.split()[1] for line in policy.splitlines() if line.startswith("  Candidate:"))


def test_the_driver_comes_from_nvidias_repository_by_its_branch_and_key(
    site: Site, hosts: list[Host], repository: NvidiaRepository
) -> None:
    version = {"bookworm": VERSIONS[0], "trixie": VERSIONS[2]}
    for host in hosts:
        gpu.give(host, [BLACKWELL])

    # Signed by another key than NVIDIA's: nothing of it is installed.
    site.variables["nvidia_driver_repository_fingerprint"] = "0" * 40
    refused = play(site)
    for host in hosts:
        assert said(refused, host, "[repository_not_trusted]")
        assert packages_of(host) == {}

    site.variables["nvidia_driver_repository_fingerprint"] = repository.fingerprint
    installed = play(site)
    for host in hosts:
        assert said(installed, host, "[reboot_needed]")
        assert installed.counts[host.name]["failed"] == 1
        assert packages_of(host) == dict.fromkeys([*ASKED, "libnvidia-ml1"], version[host.suite])
        assert host.run(["apt-mark", "showhold"], check=True).stdout.split() == ASKED
        # As unattended-upgrades sees it: what else the repository has is no candidate.
        assert candidate(host, "nvidia-driver-cuda") == version[host.suite]

    again = play(site)
    assert all(said(again, host, "[reboot_needed]") for host in hosts)
    assert again.changed == {host.name: 0 for host in hosts}, again.output

    # To another branch and back: up and down on the one release, down and up on the other.
    for branch, other in ((595, dict.fromkeys(version, VERSIONS[1])), (0, version)):
        site.variables["nvidia_driver_branch"] = branch
        moved = play(site)
        for host in hosts:
            assert said(moved, host, "[reboot_needed]")
            assert packages_of(host) == dict.fromkeys([*ASKED, "libnvidia-ml1"], other[host.suite])
            assert host.run(["apt-mark", "showhold"], check=True).stdout.split() == ASKED
            assert candidate(host, "libnvidia-ml1") == other[host.suite]


def test_a_driver_of_others_is_left_unless_the_site_has_it_replaced(
    site: Site, hosts: list[Host], fleet: Fleet, repository: NvidiaRepository
) -> None:
    theirs = {}
    for host in hosts:
        url = f"{fleet.packages_url}/nvidia/{RELEASES[host.suite]}/x86_64"
        host.run(
            f"echo 'deb [trusted=yes] {url} /' > /etc/apt/sources.list.d/own.list && "
            f"apt-get update -q && apt-get install -q -y nvidia-kernel-dkms={VERSIONS[1]}",
            check=True,
        )
        theirs[host.name] = packages_of(host)
        gpu.give(host, [AMPERE])
    site.variables["nvidia_driver_repository_fingerprint"] = repository.fingerprint

    refused = play(site)
    assert all(said(refused, host, "[driver_of_others]") for host in hosts)
    assert refused.changed == {host.name: 0 for host in hosts}
    assert {host.name: packages_of(host) for host in hosts} == theirs

    site.variables["nvidia_driver_replace"] = True
    replaced = play(site)
    for host in hosts:
        assert said(replaced, host, "[reboot_needed]")
        assert set(packages_of(host)) == {*ASKED, "libnvidia-ml1"}

    removed = play(site, "--extra-vars", '{"remove_driver": true}')
    assert removed.status == 0, removed.output[-3600:]
    for host in hosts:
        assert packages_of(host) == {}
        assert host.run("ls /var/lib/llama-orch* /etc/apt/*/llama-orch*").stdout == ""
        # Not a driver, and in its way.
        host.run("apt-get install -q -y nvidia-fabricmanager", check=True)
    site.variables["nvidia_driver_replace"] = False
    refused = play(site)
    for host in hosts:
        assert said(refused, host, "apt would remove nvidia-fabricmanager")
        assert set(packages_of(host)) == {"nvidia-fabricmanager"}
        assert host.run("ls /var/lib/llama-orch*").stdout == ""


def test_an_index_that_is_older_than_the_archive_is_read_anew(site: Site, hosts: list[Host], fleet: Fleet) -> None:
    newer = {"bookworm": "580.130.01-1", "trixie": "620.20.01-1"}
    own = NvidiaRepository(fleet.state_dir / "packages" / "nvidia-own")
    try:
        for release, key in KEYS.items():
            own.add(release, key, VERSIONS)
        for host in hosts:
            gpu.give(host, [BLACKWELL])
        site.variables["nvidia_driver_repository_url"] = f"{fleet.packages_url}/nvidia-own"
        site.variables["nvidia_driver_repository_fingerprint"] = own.fingerprint
        play(site)
        for host in hosts:
            assert set(packages_of(host)) == {*ASKED, "libnvidia-ml1"}

            # As an image of some months ago: the index knows the branch by packages that the archive has no more.
            host.run(
                f"apt-get purge -q -y --allow-change-held-packages {' '.join(ASKED)} libnvidia-ml1 && apt-get clean && "
                "touch -d '2 days ago' /var/lib/apt/lists && rm -f /var/lib/apt/periodic/update-success-stamp",
                check=True,
            )
        for suite, release in RELEASES.items():
            own.add(release, KEYS[release], [newer[suite]])
        play(site)
        for host in hosts:
            assert packages_of(host) == dict.fromkeys([*ASKED, "libnvidia-ml1"], newer[host.suite])
    finally:
        own.close()


def test_a_gpu_that_no_driver_drives_is_refused_before_anything_changes(site: Site, hosts: list[Host]) -> None:
    for host in hosts:
        gpu.give(host, [KEPLER])
    site.variables["nvidia_driver_cuda"] = {}

    run = play(site)

    assert run.status == 2
    assert run.changed == {host.name: 0 for host in hosts}
    for host in hosts:
        assert said(run, host, "[no_driver_for_gpu]")
        assert packages_of(host) == {}
