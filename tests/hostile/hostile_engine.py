"""What a model file would run if it took over llama.cpp: stands in a worker's path in place of the binding.

A copy of it is imported where the real one is, in the engine's thread, and writes into its TMPDIR what came of each
try: "done", or the name of the error.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

PLAN = json.loads(Path(__file__).with_name("plan.json").read_bytes())
MODEL, OTHER_MODEL, STATE, SECRET = (Path(PLAN[name]) for name in ("model", "other_model", "state", "secret"))
OWN, OTHER = STATE / "workers" / "w1", STATE / "workers" / "w2"
TEMPORARY = Path(os.environ["TMPDIR"])


def connect(address: object, family: int = socket.AF_INET) -> None:
    with socket.socket(family) as one:
        one.settimeout(5)
        one.connect(address)  # pyright: ignore[reportArgumentType]


def listen() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", PLAN["free_port"]))


def write(path: Path) -> None:
    path.write_text("{}")


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def trace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # PTRACE_SEIZE: stops nobody.
    if libc.ptrace(0x4206, pid, 0, 0):
        raise OSError(ctypes.get_errno(), "ptrace")


def map_model() -> None:
    with MODEL.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:4] == b"GGUF"


def draw() -> None:
    with Path("/dev/urandom").open("rb") as file:
        file.read(1)


TRIES: dict[str, Callable[[], object]] = {
    # What it must be able to do.
    "read the model": MODEL.read_bytes,
    "map the model": map_model,
    "write its temporary folder": lambda: write(TEMPORARY / "y"),
    "read the order": (OWN / "spec.json").read_bytes,
    "import a module": lambda: __import__("xml.dom.minidom"),
    "count the processors": lambda: Path("/sys/devices/system/cpu/online").read_bytes(),
    "read its own state": lambda: Path("/proc/self/status").read_bytes(),
    "draw randomness": draw,
    "start a thread": lambda: threading.Thread(target=bool).start(),
    "signal itself": lambda: os.kill(os.getpid(), signal.SIGCONT),
    # And what it must not.
    "read a secret": SECRET.read_bytes,
    "read another model": OTHER_MODEL.read_bytes,
    "read another worker's order": (OTHER / "spec.json").read_bytes,
    "read its record": (OWN / "record.json").read_bytes,
    "read passwords": Path("/etc/passwd").read_bytes,
    "list the models": lambda: [*MODEL.parent.iterdir()],
    "list the workers": lambda: [*(STATE / "workers").iterdir()],
    "list the root": lambda: [*Path("/").iterdir()],
    "read the parent's environment": Path(f"/proc/{os.getppid()}/environ").read_bytes,
    "read the parent's arguments": Path(f"/proc/{os.getppid()}/cmdline").read_bytes,
    "read the agent's environment": Path(f"/proc/{PLAN['agent']}/environ").read_bytes,
    "list processes": lambda: [*Path("/proc").iterdir()],
    "write its record": lambda: write(OWN / "record.json"),
    "write its order": lambda: write(OWN / "spec.json"),
    "remove its order": (OWN / "spec.json").unlink,
    "make a file in its folder": lambda: write(OWN / "ended.json"),
    "move a file over its record": lambda: (write(TEMPORARY / "x"), (TEMPORARY / "x").rename(OWN / "record.json")),
    "link its record": lambda: os.link(OWN / "record.json", TEMPORARY / "record"),
    "write the model": lambda: write(MODEL),
    "cut the model off": lambda: truncate(MODEL),
    "cut a secret off": lambda: truncate(SECRET),
    "write beside the model": lambda: write(MODEL.parent / "planted.gguf"),
    "write elsewhere": lambda: write(SECRET.with_name("planted")),
    "write where it imports from": lambda: write(Path(__file__).with_name("planted.py")),
    "make a link": lambda: (TEMPORARY / "link").symlink_to(SECRET),
    "make a pipe": lambda: os.mkfifo(TEMPORARY / "failure.json"),
    "make a device": lambda: os.mknod(TEMPORARY / "memory", 0o20600, os.makedev(1, 1)),
    "run a program": lambda: subprocess.run(["/bin/true"], check=True),
    "connect": lambda: connect(("127.0.0.1", PLAN["port"])),
    "listen": listen,
    "connect to an abstract socket": lambda: connect(PLAN["abstract"], socket.AF_UNIX),
    "signal the parent": lambda: os.kill(os.getppid(), signal.SIGCONT),
    "signal the agent": lambda: os.kill(PLAN["agent"], signal.SIGCONT),
    "trace the agent": lambda: trace(PLAN["agent"]),
}


def outcome(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


(TEMPORARY / "partial").write_text(json.dumps({name: outcome(work) for name, work in TRIES.items()}))
(TEMPORARY / "partial").rename(TEMPORARY / "found.json")
raise ImportError("it has seen enough")
