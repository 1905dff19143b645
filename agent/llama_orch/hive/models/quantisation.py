"""Which file of a repository a user would want who names none."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .gguf_header import split_name

WANTED = "Q4_K_M"
# From the wanted one outwards: same size first, then a little better or smaller, the extremes last.
ORDER = (
    *("Q4_K_M", "Q4_K_L", "Q4_K_XL", "Q4_K_S", "Q4_K", "IQ4_NL", "IQ4_XS", "MXFP4", "Q4_1", "Q4_0"),
    *("Q5_K_M", "Q5_K_S", "Q5_K_L", "Q5_K_XL", "Q5_K", "Q5_1", "Q5_0"),
    *("Q3_K_L", "Q3_K_XL", "Q3_K_M", "IQ3_M", "IQ3_S", "Q6_K", "Q6_K_L", "Q6_K_XL", "Q3_K_S", "Q3_K", "IQ3_XS"),
    *("IQ3_XXS", "Q8_0", "Q8_K_XL", "Q2_K_L", "Q2_K_XL", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS"),
    *("TQ2_0", "TQ1_0", "IQ1_M", "IQ1_S", "BF16", "F16", "F32"),
)
_NAME = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:IQ|TQ|Q)\d_(?:K(?:_(?:XXL|XL|L|M|S))?|XXS|XS|NL|[SM01])|MXFP4|BF16|F16|F32)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
# Files that stand beside models in repositories but are none by themselves.
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
# What a model is given beside it: small ones that guess for it, and changes to it. A repository may hold nothing else,
# or models whose own names have such a word.
_BESIDE = re.compile(
    r"(?<![A-Za-z])(?:draft(?:er)?|mtp|nextn|eagle[0-9]?|lora|adapter|control[-_]?vector)(?![A-Za-z])", re.IGNORECASE
)


def of(filename: str) -> str | None:
    """The quantisation that a file's name tells, or else the folder's that it is in, in upper case."""
    for part in reversed(filename.split("/")):
        if found := _NAME.findall(part):
            return found[-1].upper()
    return None


def goes_beside(filename: str) -> bool:
    """Whether its name says that it is given to a model beside it, as drafts and adapters are."""
    return _BESIDE.search(filename) is not None


def models_of(filenames: Iterable[str]) -> list[str]:
    """The models among a repository's files, each by its first part, sorted."""
    return sorted(
        name
        for name in filenames
        if name.lower().endswith(".gguf")
        and not _NO_MODEL.search(name.rpartition("/")[2])
        and (split_name(name) is None or split_name(name)[1] == 1)  # pyright: ignore[reportOptionalSubscript]
    )


def choose(filenames: Iterable[str]) -> tuple[str, str] | None:
    """The file to take and why, of a repository's files; None where there is no model among them."""
    there = models_of(filenames)
    models = [name for name in there if not goes_beside(name)] or there
    if not models:
        return None
    if len(models) == 1:
        return models[0], "it is the only model in the repository"
    ranked = sorted(models, key=lambda name: (_rank(of(name)), name.count("/"), len(name), name))
    best, kind = ranked[0], of(ranked[0])
    if kind == WANTED:
        return best, f"{WANTED} is the usual balance of size and quality"
    if kind is None or kind not in ORDER:
        return best, "no file's name tells a known quantisation; this is the shortest name"
    kinds = dict.fromkeys(of(name) or "one without a known name" for name in ranked)
    return best, f"there is no {WANTED}; {kind} is the nearest of: {', '.join(kinds)}"


def _rank(kind: str | None) -> int:
    return ORDER.index(kind) if kind in ORDER else len(ORDER)
