"""The pages under docs/ are what `python -m lazypv.explain docs` makes of the entries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lazypv.explain import entries
from lazypv.explain.rendering import PAGES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name):
    """If not: run `python -m lazypv.explain docs`."""
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name]()


def test_every_entry_stands_on_one_page():
    text = "".join(page() for page in PAGES.values())
    headings = re.findall(r"^### ([^:]+): ", text, re.MULTILINE)
    assert sorted(headings) == sorted(entry.id for entry in entries())


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)]+)\)", PAGES[name]())
    assert links
    assert [link for link in links if not (DOCS / link).is_file()] == []


def test_the_module_writes_the_pages(tmp_path):
    subprocess.run([sys.executable, "-m", "lazypv.explain", str(tmp_path)], check=True)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {
        name: page() for name, page in PAGES.items()
    }
