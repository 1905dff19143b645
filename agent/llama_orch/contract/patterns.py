"""Strict patterns for every string that may reach Ansible, ssh, a shell, a path or a log.

What arrives by REST ends in an Ansible inventory, where Jinja is evaluated and ssh reads options, so each
pattern lists the characters that are allowed and everything else is refused.

`$` is the very end in pydantic's and in JSON Schema's regular expressions. In Python's `re` it also matches before a
last newline: use `re.fullmatch` there.
"""

from __future__ import annotations

import ipaddress
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
# A file in a repository: folders allowed, no leading dash or dot in any part.
GGUF_FILE = r"^[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*\.gguf$"
HF_REPO = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
HF_REVISION = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"

NodeName = Annotated[str, StringConstraints(pattern=NODE_NAME, max_length=63)]
SshHost = Annotated[str, StringConstraints(pattern=SSH_HOST, max_length=253)]
SshUser = Annotated[str, StringConstraints(pattern=SSH_USER, max_length=32)]
LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY, max_length=63)]
LabelValue = Annotated[str, StringConstraints(pattern=LABEL_VALUE, max_length=63)]
WholeGpuUuid = Annotated[str, StringConstraints(pattern=WHOLE_GPU_UUID, max_length=84)]
GpuUuid = Annotated[str, StringConstraints(pattern=GPU_UUID, max_length=84)]
WorkerName = Annotated[str, StringConstraints(pattern=WORKER_NAME, max_length=63)]
GgufFilename = Annotated[str, StringConstraints(pattern=GGUF_FILE, max_length=255)]


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"expected an address or a network such as 10.0.0.7 or 10.0.0.0/24: {error}") from None


# An address or a network, as the standard library writes it.
Network = Annotated[str, AfterValidator(_network)]
