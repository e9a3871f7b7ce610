"""``python -m lazypv_bench``: the benchmark suite without the rest of the command line."""

from __future__ import annotations

import sys

import typer

from lazypv.cli.bench import bench
from lazypv.errors import LazyPVError


def main() -> None:
    """Run what the command line names; one clear line on stderr for whatever was wrong with it."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(bench)
    try:
        app(prog_name="python -m lazypv_bench")
    except LazyPVError as error:
        print(f"lazypv: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
