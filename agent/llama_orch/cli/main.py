"""The `llama-orch` command."""

from __future__ import annotations

from typing import Annotated

import typer

from . import chat, devices, jobs, models, nodes, ssh_key, up, version, workers

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn machines that you reach by ssh into one private llama.cpp inference fleet.",
)
app.command("up")(up.up)
app.add_typer(nodes.app, name="nodes")
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(workers.app, name="workers")
app.command("chat")(chat.chat)
app.command("devices")(devices.devices)
app.command("ssh-key")(ssh_key.ssh_key)
app.command("version")(version.version)


def _version_and_end(wanted: bool) -> None:
    if wanted:
        version.version()
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version_and_end, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="llama-orch")


if __name__ == "__main__":
    main()
