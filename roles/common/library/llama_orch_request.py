#!/usr/bin/python
# Copyright: llama-orch contributors. Licence: Apache-2.0 (SPDX-License-Identifier: Apache-2.0)
"""Ask a queen or a hive, and send it the token only after it has proven that it knows it."""

DOCUMENTATION = r"""
module: llama_orch_request
short_description: Ask a llama-orch service that has proven itself
description:
  - Asks the service at O(url) for a proof that it knows O(token), and sends the token, with the request, only where the
    proof holds and over the same connection.
  - Without O(path) the proof alone is asked for, and the token is sent to nobody.
  - How the proof is made stands in docs/api.md, "GET /api/v1/proof".
options:
  url:
    description: Address of the service, as V(http://127.0.0.1:8081).
    type: str
    required: true
  part:
    description: What should answer.
    type: str
    choices: [queen, hive]
    required: true
  name:
    description: The name that it should have; the hive's id, or V(queen).
    type: str
    required: true
  token:
    description: The service's api-token.
    type: str
    required: true
  unit:
    description: The systemd unit whose main process has to hold the connection's other end, on this very host.
    type: str
  path:
    description: Path of the request, with its query.
    type: str
  method:
    description: Method of the request.
    type: str
    choices: [GET, POST, DELETE]
    default: GET
  body:
    description: What is sent as JSON.
    type: dict
  status_code:
    description: Statuses that are no failure.
    type: list
    elements: int
    default: [200]
  timeout:
    description: Seconds that each answer may take.
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: Ask which workers there are
  llama_orch_request:
    url: http://127.0.0.1:8081
    part: hive
    name: hive1
    token: "{{ token }}"
    unit: llama-orch-hive.service
    path: /api/v1/workers
  no_log: true
"""

RETURN = r"""
status:
  description: Status of the answer; 200 where the proof alone was asked for, -1 where there was no answer or no proof.
  returned: always
  type: int
msg:
  description: How it went, in a sentence.
  returned: always
  type: str
json:
  description: The answer.
  returned: where it is JSON
  type: raw
name:
  description: The name that the service has proven itself by.
  returned: where it has
  type: str
"""

import contextlib
import hashlib
import hmac
import http.client
import json
import os
import secrets
import socket
import struct
import subprocess
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule

PURPOSE = "llama-orch proof 1"
MAX_PROOF_BYTES = 16 * 1024
MAX_ANSWER_BYTES = 16 * 1024 * 1024
ESTABLISHED = "01"


class NotProven(Exception):
    """What answers is not shown to be the service; the message says why."""


class Service:
    """One connection to a service, which is never opened a second time."""

    def __init__(self, url, timeout):
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("url is %r: expected an address such as http://127.0.0.1:8081" % url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout)
        self._connection.connect()
        # What proved itself is at the other end of this connection alone.
        self._connection.auto_open = 0

    def close(self):
        """Close the connection."""
        self._connection.close()

    def ask(self, method, path, headers, body, at_most):
        """Status and body of the answer."""
        self._connection.request(method, path, body=body, headers=headers)
        answer = self._connection.getresponse()
        data = answer.read(at_most + 1)
        if len(data) > at_most:
            raise ValueError("the answer is larger than %d bytes" % at_most)
        return answer.status, data

    def prove(self, token, part, name):
        """Raises NotProven where the other end does not know the token, or has another name."""
        nonce = secrets.token_urlsafe(32)
        status, data = self.ask("GET", "/api/v1/proof?nonce=" + nonce, {}, None, MAX_PROOF_BYTES)
        try:
            told = json.loads(data.decode())
            told_name, proof = str(told["name"]), str(told["proof"])
        except (ValueError, LookupError, TypeError):
            reason = "what answers there (status %d) is no llama-orch %s of this version" % (status, part)
            raise NotProven(reason) from None
        message = "\0".join((PURPOSE, part, told_name, nonce))
        wanted = hmac.new(token.encode(), message.encode(), hashlib.sha256).hexdigest()
        if status != 200 or not hmac.compare_digest(wanted.encode(), proof.encode()):
            raise NotProven("what answers there does not prove that it knows the token")
        if told_name != name:
            raise NotProven("the %s there is '%s', not '%s'" % (part, told_name[:80], name))

    def held_by(self, unit):
        """Raises NotProven where the other end is not in the hands of the unit's main process. Needs root."""
        local, peer = self._connection.sock.getsockname()[:2], self._connection.sock.getpeername()[:2]
        inode = other_end(local, peer)
        pid = main_process(unit)
        if inode is None or not holds(pid, inode):
            raise NotProven(
                "the port is not in the hands of %s (main process %s): another process on the host listens there; "
                "`ss --listening --tcp --processes` on the host says which" % (unit, pid or "none")
            )


def main_process(unit):
    """The number of the unit's main process; 0 where it has none."""
    command = ["systemctl", "show", "--property=MainPID", "--value", unit]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=30, check=True)
    return int(done.stdout.decode().strip() or 0)


def holds(pid, inode):
    """Whether the process has this socket open."""
    folder = "/proc/%d/fd" % pid
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        try:
            if os.readlink(os.path.join(folder, name)) == "socket:[%d]" % inode:
                return True
        except OSError:
            continue
    return False


def other_end(local, peer, tables=("/proc/net/tcp", "/proc/net/tcp6")):
    """The inode of the socket on this host that is the other end of a connection; None where there is none."""
    wanted = (plain(peer[0]), peer[1]), (plain(local[0]), local[1])
    for table in tables:
        try:
            with open(table) as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == ESTABLISHED and (end(fields[1]), end(fields[2])) == wanted and fields[9] != "0":
                return int(fields[9])
    return None


def end(text):
    """Address and port of one end, as the kernel writes them: words in the order of this machine."""
    address, _, port = text.partition(":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    raw = struct.pack("=%dI" % len(words), *words)
    return plain(socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)), int(port, 16)


def plain(address):
    """An IPv4 address that a socket for both kinds shows as IPv6, as itself."""
    return address[len("::ffff:") :] if address.lower().startswith("::ffff:") and "." in address else address


def main():
    """Prove, then ask."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "part": {"type": "str", "choices": ["queen", "hive"], "required": True},
            "name": {"type": "str", "required": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "unit": {"type": "str"},
            "path": {"type": "str"},
            "method": {"type": "str", "choices": ["GET", "POST", "DELETE"], "default": "GET"},
            "body": {"type": "dict"},
            "status_code": {"type": "list", "elements": "int", "default": [200]},
            "timeout": {"type": "float", "default": 30},
        },
    )
    given = module.params
    try:
        service = Service(given["url"], given["timeout"])
        try:
            service.prove(given["token"], given["part"], given["name"])
            if given["unit"]:
                service.held_by(given["unit"])
            if not given["path"]:
                module.exit_json(changed=False, status=200, name=given["name"], msg="the proof holds")
            headers = {"Authorization": "Bearer " + given["token"]}
            body = None
            if given["body"] is not None:
                headers["Content-Type"] = "application/json"
                body = json.dumps(given["body"])
            status, data = service.ask(given["method"], given["path"], headers, body, MAX_ANSWER_BYTES)
        finally:
            service.close()
    except http.client.NotConnected:
        module.fail_json(msg="%s closed the connection after its proof. No token was sent." % given["url"], status=-1)
    except NotProven as error:
        module.fail_json(msg="%s: %s. No token was sent." % (given["url"], error), status=-1)
    except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as error:
        module.fail_json(msg="%s: %s" % (given["url"], str(error) or type(error).__name__), status=-1)
    said = "%s%s answered status %d" % (given["url"], given["path"], status)
    result = {"changed": False, "status": status, "name": given["name"], "msg": said}
    with contextlib.suppress(ValueError):
        result["json"] = json.loads(data.decode())
    if status not in given["status_code"]:
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
