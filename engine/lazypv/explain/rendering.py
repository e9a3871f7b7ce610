"""How entries look: as plain text on a terminal, and as the two pages of the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from typing import Final

from lazypv.explain.catalogue import Entry, entries
from lazypv.explain.places import locate

TEXT_WIDTH: Final = 100
_PAGE_WIDTH: Final = 120
_SOURCE_ROOTS: Final = {"lazypv": "engine", "lazypv_kernels": "kernels"}
_LAST_SAFETY: Final = 33
_LAST_LIVENESS: Final = 40


def render(entry: Entry) -> str:
    """`entry` as plain text of at most 100 columns, without a line break at the end."""
    heading = f"{entry.name}: {entry.title}"
    paragraph = textwrap.fill(entry.text, TEXT_WIDTH, break_long_words=False, break_on_hyphens=False)
    where = (
        [f"where     {locate(entry.place)}", f"          {entry.place}"]
        if entry.place
        else ["where     not in this model"]
    )
    return "\n".join([heading, "", paragraph, "", *where, f"see also  {', '.join(entry.see)}"])


# --- pages of the documentation ----------------------------------------------------------------------------------


def series_page() -> str:
    """``docs/series-patches.md``: patches, defects, exceptions."""
    return _page(
        "The series, patch by patch",
        "The eleven patches of `[PATCH v1 00/11] KVM: s390: pv: implement lazy destroy`, the defects that were found "
        "in them, and the four program interruptions they turn on. Each patch is a switch of `lazypv.Series`.",
        "07",
        (
            ("Patches", _of_kind("patch")),
            ("Defects", _of_kind("defect")),
            ("Program interruptions", _of_kind("exception")),
        ),
    )


def invariants_page() -> str:
    """``docs/invariants.md``: safety, liveness, and the model's own account."""
    numbered = [(int(entry.id.removeprefix("invariant ")), entry) for entry in _of_kind("invariant")]

    def between(chosen: Callable[[int], bool]) -> list[Entry]:
        return [entry for number, entry in numbered if chosen(number)]

    return _page(
        "Invariants",
        "What has to hold in whatever order things happen. Numbers that are parameters of the model (2 GiB, 32 pages a "
        "batch, 509 entries a node) are read with the parameter's value in their place.",
        "invariant 22",
        (
            ("Safety: nothing bad happens", between(lambda number: number <= _LAST_SAFETY)),
            ("Liveness: something good happens", between(lambda number: _LAST_SAFETY < number <= _LAST_LIVENESS)),
            ("The model's own", between(lambda number: number > _LAST_LIVENESS)),
        ),
    )


PAGES: Final[dict[str, Callable[[], str]]] = {"series-patches.md": series_page, "invariants.md": invariants_page}
"""Files under ``docs/`` that are made from the entries, and what goes into each."""


def _of_kind(kind: str) -> list[Entry]:
    return [entry for entry in entries() if entry.kind == kind]


def _page(title: str, introduction: str, example: str, sections: Iterable[tuple[str, list[Entry]]]) -> str:
    topic = f'"{example}"' if " " in example else example
    parts = [
        "<!-- Made from engine/lazypv/explain/entries.toml by `python -m lazypv.explain docs`: edit there. -->",
        f"# {title}",
        _fill(introduction),
        "Each paragraph can be had on the command line, with the line of the code in which it lives:",
        f"```console\n$ lazypv explain {topic}\n```",
    ]
    for heading, members in sections:
        parts.append(f"## {heading}")
        for entry in members:
            parts += [f"### {entry.id}: {entry.title}", _fill(entry.text), _footer(entry)]
    return "\n\n".join(parts) + "\n"


def _footer(entry: Entry) -> str:
    where = f"Where: [`{entry.place}`]({_link(entry.place)})." if entry.place else "Where: not in this model."
    return f"{where} See also: {', '.join(entry.see)}."


def _link(place: str) -> str:
    """Path of a place's file as seen from ``docs/``. No line: the page would be stale after every edit."""
    path = locate(place).rpartition(":")[0]
    return f"../{_SOURCE_ROOTS[path.partition('/')[0]]}/{path}"


def _fill(text: str) -> str:
    return textwrap.fill(text, _PAGE_WIDTH, break_long_words=False, break_on_hyphens=False)
