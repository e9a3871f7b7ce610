"""The command line. Nothing here imports numpy, numba or pyarrow until a command runs that needs them."""

from __future__ import annotations

from typing import Annotated

import typer

from lazypv._version import __version__
from lazypv.cli.ablate import ablate
from lazypv.cli.bench import bench
from lazypv.cli.defects import defects
from lazypv.cli.doctor import doctor
from lazypv.cli.explain import explain
from lazypv.cli.explore import explore
from lazypv.cli.key import key_app
from lazypv.cli.reboot import reboot, shutdown
from lazypv.cli.snapshot import snapshot_app
from lazypv.cli.trace import check, trace
from lazypv.cli.warm import warm

app = typer.Typer(
    name="lazypv",
    help="An executable model of IBM Z protected guests on Linux/KVM, and of the lazy destruction of their memory.",
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lazypv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command()(reboot)
app.command()(shutdown)
app.command()(explore)
app.command()(ablate)
app.command()(defects)
app.command()(trace)
app.command()(check)
app.command()(explain)
app.add_typer(snapshot_app, name="snapshot")
app.add_typer(key_app, name="key")
app.command()(bench)
app.command()(warm)
app.command()(doctor)
