"""Writes wheels, the same bytes for the same files."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LINUX_TAG = "py3-none-linux_x86_64"
# The first moment that a zip archive can name.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


def metadata(name: str, version: str, needs: Sequence[str]) -> bytes:
    """What `METADATA` says of a distribution that needs these."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
    return ("\n".join(lines) + "\n").encode()


@dataclass(frozen=True)
class Wheel:
    """A wheel to be: files and texts by their names below site-packages."""

    name: str
    version: str
    metadata: bytes
    files: Mapping[str, Path]
    texts: Mapping[str, str] = field(default_factory=dict)
    licenses: Sequence[Path] = ()

    def write(self, folder: Path, tag: str = LINUX_TAG) -> Path:
        """Write it into the folder, whole or not at all, and answer its path."""
        stem = f"{self.name.replace('-', '_')}-{self.version}"
        wheel = folder / f"{stem}-{tag}.whl"
        info = f"{stem}.dist-info"
        licenses = {f"{info}/licenses/{path.parent.name}/{path.name}": path for path in self.licenses}
        fresh = wheel.with_name(f".{wheel.name}.{os.getpid()}")
        try:
            with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
                record = [_add(archive, name, path.read_bytes()) for name, path in {**self.files, **licenses}.items()]
                record += [_add(archive, name, text.encode()) for name, text in self.texts.items()]
                record.append(_add(archive, f"{info}/METADATA", self.metadata))
                record.append(_add(archive, f"{info}/WHEEL", _described(tag)))
                _add(archive, f"{info}/RECORD", "".join([*record, f"{info}/RECORD,,\n"]).encode())
            fresh.replace(wheel)
        finally:
            fresh.unlink(missing_ok=True)
        return wheel


def _described(tag: str) -> bytes:
    lines = ["Wheel-Version: 1.0", "Generator: llama-orch", "Root-Is-Purelib: false", f"Tag: {tag}"]
    return ("\n".join(lines) + "\n").encode()


def _add(archive: zipfile.ZipFile, inside: str, content: bytes) -> str:
    info = zipfile.ZipInfo(inside, _NO_TIME)
    info.external_attr = (0o755 if ".so" in Path(inside).suffixes else 0o644) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, content)
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{inside},sha256={digest},{len(content)}\n"
