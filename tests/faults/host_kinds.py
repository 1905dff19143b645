"""All faults of test hosts."""

from __future__ import annotations

from .fault import Catalogue
from .host_machine_kinds import MACHINES
from .host_process_kinds import PROCESSES

ON_HOSTS = Catalogue([*MACHINES.faults, *PROCESSES.faults])
