"""Settings of a process: flag > environment > file > default. A wrong one stops the start and is named."""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from llama_orch import __version__


class Settings(BaseModel):
    """Base of a process's settings; every field has a description, which `--help` shows.

    What may have been given with a secret in it is a field with `repr=False`: no message shows it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class WrongSetting(Exception):
    """A setting that cannot be used; the message names the key, where it stands and what was expected."""


T = TypeVar("T", bound=Settings)


def load(model: type[T], *, program: str, env_prefix: str, argv: Sequence[str], environ: Mapping[str, str]) -> T:
    """Merge flags, environment and the `--config` file into `model`. Raises WrongSetting."""
    parser = argparse.ArgumentParser(program, description=(model.__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    parser.add_argument("--config", metavar="FILE", help="TOML file with these settings")
    for key, field in model.model_fields.items():
        default = "" if field.is_required() else f" (default: {field.get_default(call_default_factory=True)!r})"
        parser.add_argument(
            "--" + key.replace("_", "-"),
            dest=key,
            metavar="VALUE",
            default=None,
            help=f"{field.description or ''}{default}".replace("%", "%%"),
        )
    flags = vars(parser.parse_args(list(argv)))
    config_file = flags.pop("config") or environ.get(env_prefix + "CONFIG")
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, value in _read(config_file).items():
        values[key], sources[key] = value, str(config_file)
    for key in model.model_fields:
        if (name := env_prefix + key.upper()) in environ:
            values[key], sources[key] = environ[name], f"environment variable {name}"
    for key, value in flags.items():
        if value is not None:
            values[key], sources[key] = value, "flag --" + key.replace("_", "-")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        hidden = {key for key, field in model.model_fields.items() if not field.repr}
        raise WrongSetting(_explain(error, sources, config_file, hidden)) from None


def load_or_exit(model: type[T], *, program: str, env_prefix: str) -> T:
    """As `load`, from this process's arguments; a wrong setting is printed and ends the process with 2."""
    try:
        return load(model, program=program, env_prefix=env_prefix, argv=sys.argv[1:], environ=os.environ)
    except WrongSetting as error:
        stop(program, str(error))


def stop(program: str, message: str) -> NoReturn:
    """End the process with status 2 and a message that a person can act on."""
    sys.stderr.write(f"{program}: {message}\n")
    raise SystemExit(2)


def _read(config_file: str | None) -> dict[str, Any]:
    if config_file is None:
        return {}
    try:
        return tomllib.loads(Path(config_file).read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongSetting(f"cannot read the settings file {config_file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise WrongSetting(f"{config_file} is not valid TOML: {error}") from None


def _explain(error: ValidationError, sources: dict[str, str], config_file: str | None, hidden: set[str]) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "settings"
        top = str(item["loc"][0]) if item["loc"] else ""
        where = sources.get(top, config_file or "the settings")
        if item["type"] == "missing":
            lines.append(f"'{key}' is not set in {where}: it is required")
        elif item["type"] == "extra_forbidden":
            lines.append(f"'{key}' in {where} is no setting; look for a typing error")
        elif top in hidden:
            lines.append(f"'{key}' in {where}: {item['msg']}")
        else:
            lines.append(f"'{key}' in {where} is {item['input']!r}: {item['msg']}")
    return "; ".join(lines)
