"""The stored help is what the parser would say."""

from __future__ import annotations

from pathlib import Path

import lazypv.cli
from lazypv.__main__ import run


def test_the_stored_help_is_what_the_parser_says(monkeypatch, capsys):
    """Regenerate with: COLUMNS=80 python -c "from lazypv.cli import app; app(['--help'], prog_name='lazypv')"."""
    monkeypatch.setenv("COLUMNS", "80")
    lazypv.cli.app(["--help"], prog_name="lazypv", standalone_mode=False)
    said = capsys.readouterr().out
    assert Path(lazypv.cli.__file__).with_name("help.txt").read_text(encoding="utf-8") == said


def test_help_is_fine_and_nothing_asked_for_is_bad_use(capsys):
    assert run(["--help"]) == 0
    assert run([]) == 2
    first, second = capsys.readouterr().out.split("Usage:")[1:]
    assert first == second
