"""``python -m lazypv_bench.readme RESULTS.json``: the tables and the picture of the documentation, from a real run.

Between the two markers of each page stands what this writes; run it after ``lazypv bench --json > RESULTS.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lazypv.errors import LazyPVError, UsageError
from lazypv.files import replaced_atomically
from lazypv.sizes import format_size
from lazypv_bench.comparison import load
from lazypv_bench.picture import save_plot
from lazypv_bench.report import results_of

if TYPE_CHECKING:
    from lazypv_bench.harness import Result

BEGIN: Final = "<!-- benchmarks: from a run, by python -m lazypv_bench.readme -->"
END: Final = "<!-- benchmarks: end -->"
PAGES: Final = ("README.md", "docs/benchmarks.md")
PICTURE: Final = "docs/benchmarks.svg"
SHORT: Final = "README.md"
"""This page shows only what has a bar."""


def table_of(results: Sequence[Result]) -> str:
    """A Markdown table: ratio, spread, bar, value, and the ratios to rivals."""
    lines = [
        "| benchmark | ratio | lowest to highest | bar | limit | value | times as fast as |",
        "| --- | ---: | ---: | ---: | --- | ---: | --- |",
    ]
    for each in results:
        rivals = ", ".join(f"{name} {ratio:.3g}" for name, ratio in each.rivals.items())
        lines.append(
            f"| `{each.name}` | {each.ratio:.3g} | {each.low:.3g} to {each.high:.3g} | {each.bar_text} | {each.limit} |"
            f" {each.value:.3g} {each.unit} | {rivals} |"
        )
    return "\n".join(lines)


def machine_line(document: dict[str, Any]) -> str:
    """What the figures were measured on, in a sentence."""
    machine = document["machine"]
    versions = machine.get("versions", {})
    software = ", ".join(f"{name} {versions[name]}" for name in ("python", "numpy", "numba") if versions.get(name))
    size, pairs = document.get("size_bytes"), document.get("pairs")
    return (
        f"{machine.get('cpu')}, {machine.get('cores')} cores, {format_size(machine.get('memory_bytes', 0))} of memory,"
        f" huge pages: {machine.get('huge_pages')}, {machine.get('system')} {machine.get('kernel')}; {software};"
        f" {format_size(size) if size else 'unknown size'}, {pairs} turns."
    )


def rewritten(page: str, document: dict[str, Any], *, short: bool, name: str = "the page") -> str:
    """`page` with the table of `document` between its markers.

    Raises
    ------
    UsageError
        The page has no markers, or not in this order.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{name}: has no {BEGIN} with {END} behind it")
    results = [each for each in results_of(document) if each.bar is not None or not short]
    return f"{head}{BEGIN}\n\n{machine_line(document)}\n\n{table_of(results)}\n\n{END}{tail}"


def update(results: Path, root: Path) -> list[Path]:
    """Rewrite the tables of the documentation under `root` and draw its picture; the files that were written."""
    document = load(results)
    written = []
    for name in PAGES:
        path = root / name
        new = rewritten(path.read_text(encoding="utf-8"), document, short=name == SHORT, name=name)
        with replaced_atomically(path) as file:
            file.write(new.encode())
        written.append(path)
    save_plot(results_of(document), document["machine"], root / PICTURE)
    return [*written, root / PICTURE]


def readme(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.json", help="What `lazypv bench --json` printed.")],
    root: Annotated[Path, typer.Option(help="The checkout.")] = Path(),
) -> None:
    """Rewrite the tables in README.md and docs/benchmarks.md, and draw docs/benchmarks.svg."""
    for path in update(results, root):
        typer.echo(path, err=True)


def main() -> None:
    """Run what the command line says; one clear line on stderr for whatever was wrong with it."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(readme)
    try:
        app(prog_name="python -m lazypv_bench.readme")
    except (LazyPVError, OSError) as error:
        print(f"lazypv: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 2))


if __name__ == "__main__":
    main()
