"""Within how many seconds all must be well again: what docs/faults.md promises, on a machine that is busy besides."""

from __future__ import annotations

# Systemd's two seconds, and the start of an agent on a busy machine.
AGENT_S = 20.0
# A crash is followed by a wait of up to 16 s, by how many came before it.
WORKER_S = 45.0
# Fifteen seconds without an ended step, or ten times the longest; and five questions without an answer.
HUNG_S = 40.0
HUNG_WORKER_S = HUNG_S + WORKER_S
QUEEN_S = 20.0
# A job that was cut goes on, or ends and is asked for again.
JOB_S = 60.0
INVENTORY_S = 30.0
# The queen asks a node that was silent six rounds apart at most; what she waits for is lost after her time-out.
LINE_S = 30.0
# The engine tests itself once in each boot.
BOOT_S = 90.0
# A full disk is tried again at most 60 s apart.
DISK_S = 60.0 + WORKER_S
# While a host's line is cut, its node is shown as unreachable after three questions in a row without an answer.
UNREACHABLE_S = 30.0
# A job on a host that is gone or cannot be reached: ssh's own limits decide.
CUT_JOB_S = 240.0
# Five crashes in a row and somebody who asks again.
STORM_S = 60.0
