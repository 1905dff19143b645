"""Whether a host can be worked on: its ssh host key, one plain ssh as the login user, then whether sudo works.

Nothing is changed on the host, and no password is sent to one whose host key nobody has confirmed.
"""

from __future__ import annotations

import asyncio
import contextlib

from llama_orch.contract.common import Problem

from ..inventory.view import Host
from . import failures
from .first_contact import FirstContact
from .ssh import FAILED, Ssh
from .ssh_keys import KnownHosts

_NO_SUDO = 90
_WANTS_PASSWORD = 91
_SUDO_AS_IT_IS = (
    'if [ "$(id -u)" = 0 ]; then exit 0; fi; '
    f"command -v sudo >/dev/null 2>&1 || exit {_NO_SUDO}; "
    f"LC_ALL=C sudo -n true && exit 0; exit {_WANTS_PASSWORD}"
)
_SUDO_BY_STDIN = "LC_ALL=C sudo -S -k -p '' true"
# What ssh says of a host that known_hosts does not have.
_NEW_HOST = "host key is known for"


async def check(ssh: Ssh, password: str | None, known_hosts: KnownHosts) -> Problem | None:
    """Compare or record the host key, log in, try sudo. None where all is well."""
    host = ssh.host
    if host.connection != "ssh" or host.templated:
        return None
    sends_password = password is not None or host.has_become_password or host.has_ssh_password
    contact = FirstContact(ssh, known_hosts, sends_password=sends_password)
    if (problem := contact.wrong_setting()) is not None:
        return problem
    code, text = await ssh.run(_SUDO_AS_IT_IS)
    new = code == FAILED and _NEW_HOST in text
    if new or code != FAILED:
        problem = await (contact.meet() if new else contact.compare())
        if problem is not None:
            return problem
    if new:
        code, text = await ssh.run(_SUDO_AS_IT_IS)
    return await _try_sudo(ssh, password, code, text)


async def _try_sudo(ssh: Ssh, password: str | None, code: int, text: str) -> Problem | None:
    host = ssh.host
    problem = _explain(code, text, host)
    if code != _WANTS_PASSWORD or host.has_become_password:
        return None if code == _WANTS_PASSWORD else problem
    if password is None or "not in the sudoers" in text or "not allowed" in text:
        return problem
    code, text = await ssh.run(_SUDO_BY_STDIN, typed=password)
    if code not in {0, FAILED} and "not in the sudoers" not in text:
        text = f"Incorrect sudo password: {text}"
    return _explain(code, text, host)


async def port_answers(host: Host, timeout_s: float) -> bool:
    """Whether something accepts connections at the host's ssh port."""
    if host.connection != "ssh" or host.templated or any("Proxy" in argument for argument in host.ssh_args):
        return True
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.ssh_host, host.ssh_port), timeout_s)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _explain(code: int, text: str, host: Host) -> Problem | None:
    if code == 0:
        return None
    task = "log in by ssh" if code == FAILED else "use sudo"
    if code == _NO_SUDO:
        text = "sudo is not installed"
    return failures.classify(text, task=task, host=host.name, unreachable=code == FAILED)
