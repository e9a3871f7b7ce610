"""The results as a drawing: where each benchmark's ratio lies, from the lowest turn to the highest, and its bar."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

from lazypv.errors import UsageError
from lazypv.files import replaced_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from lazypv_bench.harness import Result

REACHED, MISSED, NO_BAR = "#2a7f62", "#c2452d", "#5b6b7b"
ROW_INCHES: Final = 0.28


def require_matplotlib() -> None:
    """Say now rather than after the runs that nothing can be drawn.

    Raises
    ------
    UsageError
        matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError("drawing takes matplotlib: pip install 'lazypv[plots]'") from None


def save_plot(results: list[Result], machine: dict[str, Any], path: Path) -> None:
    """Draw `results` as SVG or, by the name's ending, whatever else matplotlib writes; replaced atomically."""
    require_matplotlib()
    import matplotlib

    kind = path.suffix.removeprefix(".") or "svg"
    drawn = io.BytesIO()
    # Nothing in the file but the results: the same ones give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "lazypv", "svg.fonttype": "none"}):
        figure = _figure(results, machine)
        try:
            figure.savefig(drawn, format=kind, metadata={"Date": None} if kind == "svg" else None)
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from None
    with replaced_atomically(path) as file:
        file.write(drawn.getvalue())


def _figure(results: list[Result], machine: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    sides = [
        ("speed over the limit's speed: more is better", [each for each in results if each.better == "higher"]),
        ("time over the limit's time: less is better", [each for each in results if each.better == "lower"]),
    ]
    sides = [side for side in sides if side[1]]
    rows = sum(len(chosen) + 2 for _, chosen in sides)
    figure = Figure(figsize=(8, 0.6 + ROW_INCHES * rows), layout="constrained")
    parts = figure.subplots(len(sides), 1, squeeze=False, height_ratios=[len(chosen) + 1 for _, chosen in sides])
    for (title, chosen), (axes,) in zip(sides, parts, strict=True):
        _draw(axes, title, chosen)
    figure.suptitle(f"{machine.get('cpu', 'this computer')}, {machine.get('cores', '?')} cores", fontsize=9)
    return figure


def _draw(axes: Any, title: str, results: list[Result]) -> None:
    for at, result in enumerate(results):
        colour = {None: NO_BAR, True: REACHED, False: MISSED}[result.met]
        axes.plot([result.low, result.high], [at, at], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([result.ratio], [at], "o", color=colour, markersize=5)
        if result.bar_ratio is not None:
            axes.plot([result.bar_ratio, result.bar_ratio], [at - 0.4, at + 0.4], color="black", linewidth=1.2)
    axes.axvline(1.0, color="0.75", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(results)), [result.name for result in results], fontsize=8)
    axes.set_ylim(len(results) - 0.4, -0.6)
    highest = max(result.high for result in results)
    if highest > 3:
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, max(1.05, highest * 1.05))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(title, fontsize=9, loc="left")
