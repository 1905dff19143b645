"""Strict patterns for every string that may reach Ansible, ssh, a shell, a path or a log.

What arrives by REST ends in an Ansible inventory, where Jinja is evaluated and ssh reads options, so each
pattern lists the characters that are allowed and everything else is refused.

`$` is the very end in pydantic's and in JSON Schema's regular expressions. In Python's `re` it also matches before a
last newline: use `re.fullmatch` there.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

NODE_NAME = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
SSH_HOST = r"^(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7})$"
SSH_USER = r"^[a-z_][a-z0-9_-]{0,31}$"
LABEL_KEY = r"^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$"
LABEL_VALUE = r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
WORKER_NAME = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
# A GPU, or a part of one, as NVML names it.
GPU_UUID = r"^(?:GPU|MIG)-[A-Za-z0-9-]{1,80}$"
WHOLE_GPU_UUID = r"^GPU-[A-Za-z0-9-]{1,80}$"
IDENTIFIER = r"^[A-Za-z0-9-]{1,64}$"
CORRELATION_ID = r"^[A-Za-z0-9-]{1,64}$"

# Names of files and folders. Beyond ASCII: all but spaces, what prints nothing, what turns the direction of text, and
# halves of surrogate pairs. Of ASCII not: control characters, `/` and `\`, and what templates, shells and URLs evaluate
# inside of quotes or where they are read twice: " ` $ % * ? : ; < > | { }
_BEYOND_ASCII = (
    "\u00a1-\u00ac\u00ae-\u061b\u061d-\u167f\u1681-\u180d\u180f-\u1fff\u2010-\u2027\u2030-\u205e"
    "\u2070-\u2fff\u3001-\ud7ff\ue000-\ufefe\uff00-\uffef\U00010000-\U000dffff"
)
_FIRST = rf"[A-Za-z0-9_(\[{_BEYOND_ASCII}]"
_FIRST_OF_PATH = rf"[A-Za-z0-9_(\[!#&')+,.=@\]^~{_BEYOND_ASCII}]"
_FURTHER = rf"[A-Za-z0-9 !#&'()+,.=@\[\]^_~{_BEYOND_ASCII}-]"
_ENDING = r"\.[Gg][Gg][Uu][Ff]"
# A file in a repository: folders allowed; no part begins with what an option, a hidden file or a home begins with.
GGUF_FILE = rf"^{_FIRST}{_FURTHER}*(?:/{_FIRST}{_FURTHER}*)*{_ENDING}$"
# A file on a disk, by its absolute path: hidden folders are allowed, `.` and `..` are not.
GGUF_PATH = rf"^(?:/(?!\.{{1,2}}/){_FIRST_OF_PATH}{_FURTHER}*)+{_ENDING}$"
LONGEST_NAME_BYTES = 255
HF_REPO = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
HF_REVISION = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"

# A host's ssh key: its fingerprint as `ssh-keygen -l` shows it, or a line of a file `ssh_host_*_key.pub`.
HOST_KEY = (
    r"^(?:SHA256:[A-Za-z0-9+/]{43}|(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) "
    r"AAAA[A-Za-z0-9+/]{40,2000}={0,2}(?: [A-Za-z0-9@._-]{1,255})?)$"
)

NodeName = Annotated[str, StringConstraints(pattern=NODE_NAME, max_length=63)]
SshHost = Annotated[str, StringConstraints(pattern=SSH_HOST, max_length=253)]
SshUser = Annotated[str, StringConstraints(pattern=SSH_USER, max_length=32)]
LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY, max_length=63)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE, max_length=63)]
WholeGpuUuid = Annotated[str, StringConstraints(pattern=WHOLE_GPU_UUID, max_length=84)]
GpuUuid = Annotated[str, StringConstraints(pattern=GPU_UUID, max_length=84)]
HostKeyGiven = Annotated[str, StringConstraints(pattern=HOST_KEY, max_length=2400)]
WorkerName = Annotated[str, StringConstraints(pattern=WORKER_NAME, max_length=63)]


def names_fit(path: str) -> bool:
    """Whether each part of a path is short enough for a disk, which counts the bytes of UTF-8 (Linux, NAME_MAX)."""
    return all(len(part.encode()) <= LONGEST_NAME_BYTES for part in path.split("/"))


def _short_names(path: str) -> str:
    if not names_fit(path):
        raise ValueError(f"a name in it has more than the {LONGEST_NAME_BYTES} bytes that disks take")
    return path


GgufFilename = Annotated[str, StringConstraints(pattern=GGUF_FILE, max_length=255), AfterValidator(_short_names)]


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"expected an address or a network such as 10.0.0.7 or 10.0.0.0/24: {error}") from None


# An address or a network, as the standard library writes it.
Network = Annotated[str, AfterValidator(_network)]

# A web page's origin as browsers send it (WHATWG HTML, "Origin"), extensions and desktop programs among them.
WEB_ORIGIN = (
    r"^(?P<scheme>[a-z][a-z0-9+.-]{0,31})://"
    r"(?P<host>[a-z0-9_](?:[a-z0-9._-]{0,251}[a-z0-9])?|\[[0-9a-f:]{2,45}\])(?::(?P<port>[0-9]{1,5}))?$"
)
# Browsers leave these out.
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def _web_origin(text: str) -> str:
    if text == "*":
        return text
    found = re.fullmatch(WEB_ORIGIN, text.lower().removesuffix("/"))
    if found is None:
        raise ValueError(
            "expected '*' or an origin such as https://chat.example.com or http://localhost:3000: no path, no '*' in it"
        )
    port = "" if found["port"] in {None, _DEFAULT_PORTS.get(found["scheme"])} else f":{found['port']}"
    return f"{found['scheme']}://{found['host']}{port}"


# An origin, or '*' for every one.
WebOrigin = Annotated[str, AfterValidator(_web_origin)]
