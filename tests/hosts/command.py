"""Command line of the test hosts: every answer is JSON on stdout, everything said is on stderr."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import gpu
from .disks import User
from .images import PYTHONS, say
from .machines import DEFAULT_USERS, Fleet, HostsError


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    top = argparse.ArgumentParser(prog="python -m tests.hosts.machines", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="make a host and boot it, or boot one that is off; prints it")
    up.add_argument("name")
    up.add_argument("--suite", default="bookworm")
    up.add_argument("--python", choices=list(PYTHONS), default="full", help="how much of Python the host has")
    up.add_argument("--no-python", action="store_const", const="none", dest="python", help="the same as --python none")
    up.add_argument("--user", action="append", help="login with sudo without password (default: llama-orch)")
    up.add_argument(
        "--password-user", action="append", default=[], metavar="NAME:PASSWORD", help="login with sudo by password"
    )
    up.add_argument("--plain-user", action="append", default=[], metavar="NAME", help="login without sudo")
    up.add_argument("--authorized-key", action="append", default=[], type=Path, metavar="FILE", help="public key file")
    up.add_argument("--timeout", type=float, default=60.0, help="seconds until ssh must answer")

    down = commands.add_parser("down", help="remove the named hosts, or all; with the last one goes the network")
    down.add_argument("names", nargs="*", metavar="name")
    commands.add_parser("list", help="print all hosts")
    for name, about in ACTIONS.items():
        commands.add_parser(name, help=about).add_argument("name")
    gpus = commands.add_parser("gpu", help="put NVIDIA GPUs into a running host, by PCI device id, or take them out")
    gpus.add_argument("name")
    gpus.add_argument("device", nargs="*", help="such as 2204; none takes them out")
    run = commands.add_parser("run", help="run a shell command in a host, past its network")
    run.add_argument("name")
    run.add_argument("line")
    for one in commands.choices.values():
        one.add_argument("--state-dir", type=Path, required=True, help="where the hosts are kept")
    return top


ACTIONS = {
    "power-off": "shut a host down in order",
    "power-cut": "take a host's power away",
    "cut-cable": "take a host off the network",
    "mend-cable": "put it back",
    "drop-packets": "lose all packets, with the carrier still there",
    "pass-packets": "let them through again",
}


def users_of(arguments: argparse.Namespace) -> dict[str, User]:
    """The logins that the command line asks for."""
    users: dict[str, User] = {name: {"sudo": "nopasswd"} for name in arguments.user or ()}
    for pair in arguments.password_user:
        name, _, password = pair.partition(":")
        users[name] = {"sudo": "password", "password": password}
    for name in arguments.plain_user:
        users[name] = {}
    return users or dict(DEFAULT_USERS)


def up(fleet: Fleet, arguments: argparse.Namespace) -> dict[str, object]:
    """Make or switch on one host; what it is."""
    fleet.open()
    host = fleet.hosts().get(arguments.name)
    if host is None:
        keys = [line for file in arguments.authorized_key for line in file.read_text().splitlines() if line.strip()]
        host = fleet.boot(
            arguments.name, suite=arguments.suite, python=arguments.python, users=users_of(arguments),
            authorized_keys=keys, timeout=arguments.timeout,
        )  # fmt: skip
    elif not host.running:
        host.boot_again(arguments.timeout)
    return host.as_json()


def answer(value: object) -> None:
    """Print a command's answer."""
    sys.stdout.write(json.dumps(value) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status."""
    arguments = parser().parse_args(argv)
    fleet = Fleet(arguments.state_dir, persistent=True)
    try:
        if arguments.command == "up":
            answer(up(fleet, arguments))
        elif arguments.command == "list":
            answer([host.as_json() for host in fleet.hosts().values()])
        elif arguments.command == "down":
            for name in arguments.names:
                fleet.remove(name)
            if not arguments.names or not fleet.hosts():
                fleet.close()
        else:
            host = fleet.host(arguments.name)
            if arguments.command == "gpu":
                if arguments.device:
                    gpu.give(host, arguments.device)
                else:
                    gpu.take(host)
                return 0
            if arguments.command == "run":
                done = host.run(arguments.line, timeout=600)
                sys.stdout.write(done.stdout)
                sys.stderr.write(done.stderr)
                return done.returncode
            getattr(host, arguments.command.replace("-", "_"))()
    except (HostsError, OSError) as error:
        say(f"error: {error}")
        return 1
    return 0
