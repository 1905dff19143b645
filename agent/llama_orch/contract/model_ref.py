"""The `model_ref` grammar.

hf:org/repo            the hub's repository, its default revision
hf:org/repo@revision   a branch, tag or commit of it
either with ::file=NAME.gguf
file:/absolute/path.gguf
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from . import patterns

_GRAMMAR = "hf:org/repo[@revision][::file=NAME.gguf] or file:/absolute/path.gguf"
_NOT_TAKEN = 'control characters or any of " ` \\ $ % * ? : ; < > | { }'


@dataclass(frozen=True)
class HubRef:
    """A model in a repository of the hub. `filename` is None while no quantisation has been chosen."""

    repo: str
    revision: str | None = None
    filename: str | None = None
    DEFAULT_REVISION: ClassVar[str] = "main"

    @property
    def base(self) -> str:
        """The reference without its file, as the API shows it."""
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision else "")

    def __str__(self) -> str:
        return self.base + (f"::file={self.filename}" if self.filename else "")


@dataclass(frozen=True)
class FileRef:
    """A GGUF file that is already on the hive's disk."""

    path: str

    @property
    def base(self) -> str:
        """The reference as the API shows it."""
        return f"file:{self.path}"

    def __str__(self) -> str:
        return self.base


ModelRef = HubRef | FileRef


def parse(text: str, filename: str | None = None) -> ModelRef:
    """Parse a `model_ref`; `filename` is the separate field of the API and must not contradict `::file=`.

    Raises ValueError with a message that says what was expected.
    """
    if text.startswith("file:"):
        path = text.removeprefix("file:")
        if len(path) > 1024 or not re.fullmatch(patterns.GGUF_PATH, path) or not patterns.names_fit(path):
            raise ValueError(
                f"'file:' needs an absolute path to a .gguf file without '..', {_NOT_TAKEN}; expected {_GRAMMAR}"
            )
        if filename is not None:
            raise ValueError("'filename' goes with hf: references only; file:/path names the file itself")
        return FileRef(path)
    if not text.startswith("hf:"):
        raise ValueError(f"expected {_GRAMMAR}")
    rest, marker, inline = text.removeprefix("hf:").partition("::file=")
    if marker and (not re.fullmatch(patterns.GGUF_FILE, inline) or not patterns.names_fit(inline)):
        raise ValueError(
            f"'::file=' must name a .gguf file in the repository, without {_NOT_TAKEN}; expected {_GRAMMAR}"
        )
    repo, at, revision = rest.partition("@")
    if not re.fullmatch(patterns.HF_REPO, repo) or ".." in repo or "--" in repo:
        raise ValueError(f"'{repo[:100]!s}' is no org/repo; expected {_GRAMMAR}")
    if at and (not re.fullmatch(patterns.HF_REVISION, revision) or ".." in revision):
        raise ValueError(f"the revision after '@' must be a branch, tag or commit; expected {_GRAMMAR}")
    if filename is not None and inline and filename != inline:
        raise ValueError(f"'filename' says {filename} and '::file=' says {inline}: give one of them")
    return HubRef(repo, revision or None, filename or inline or None)


def _check(text: str) -> str:
    parse(text)
    return text


ModelRefText = Annotated[str, AfterValidator(_check)]
