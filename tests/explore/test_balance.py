"""Invariant 41 at the end of every explored run: no page comes or goes that is not in one account."""

from __future__ import annotations

import pytest

from lazypv.explore.scenarios import scenario
from lazypv.explore.search import Bounds, Explorer
from lazypv.host.ledger import Ledger
from lazypv.series import Series
from lazypv.ultravisor.firmware import Firmware


def explored(name="shutdown-during-cleanup"):
    of = scenario(name)
    return Explorer(of.build(Series(), 2), of.scene, Bounds(1)).exhaust()


@pytest.mark.parametrize("account", ["destroyed_sync", "destroyed_background"])
def test_pages_that_the_host_destroys_and_does_not_book_are_missed(account, monkeypatch):
    add = Ledger.add
    monkeypatch.setattr(Ledger, "add", lambda books, name, pages: None if name == account else add(books, name, pages))
    (broken,) = explored().broken
    assert broken.violation.number == 41
    assert "booked" in broken.violation.text


def test_pages_that_a_configuration_loses_unseen_are_missed(monkeypatch):
    """As it would be if a page went by export, and the firmware's count of exports did not know."""
    monkeypatch.setattr(Firmware, "exported", lambda _firmware, _configuration: 0)
    (broken,) = explored("reboot-into-protected").broken
    assert broken.violation.number == 41
    assert "exported" in broken.violation.text


def test_nothing_is_missed_in_runs_one_after_the_other():
    """Each run begins with books of its own, also for what nobody puts back."""
    explorer = explored()
    assert explorer.exhausted
    assert not explorer.broken
