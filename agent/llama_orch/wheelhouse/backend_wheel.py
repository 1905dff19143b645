"""Writes a wheel that holds libraries and nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

TAG = "py3-none-linux_x86_64"
# The first moment that a zip archive can name.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, Path], needs: Sequence[str]) -> Path:
    """Put the files under these names, below site-packages, into a wheel; the same bytes for the same files."""
    stem = f"{name.replace('-', '_')}-{version}"
    wheel = folder / f"{stem}-{TAG}.whl"
    info = f"{stem}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {n}" for n in needs),
    ]
    described = ["Wheel-Version: 1.0", "Generator: llama-orch", "Root-Is-Purelib: false", f"Tag: {TAG}"]
    written = {f"{info}/METADATA": "\n".join(metadata) + "\n", f"{info}/WHEEL": "\n".join(described) + "\n"}
    fresh = wheel.with_name(f".{wheel.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            record = [_add(archive, inside, path.read_bytes()) for inside, path in files.items()]
            record += [_add(archive, inside, text.encode()) for inside, text in written.items()]
            _add(archive, f"{info}/RECORD", "".join([*record, f"{info}/RECORD,,\n"]).encode())
        fresh.replace(wheel)
    finally:
        fresh.unlink(missing_ok=True)
    return wheel


def _add(archive: zipfile.ZipFile, inside: str, content: bytes) -> str:
    info = zipfile.ZipInfo(inside, _NO_TIME)
    info.external_attr = (0o755 if inside.endswith(".so") else 0o644) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{inside},sha256={digest},{len(content)}\n"
