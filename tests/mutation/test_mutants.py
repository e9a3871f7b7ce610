"""Mutants: which places are left alone, which are drawn, and that a trial touches nothing but its copy."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cosmic_ray", reason="the extra 'mutation' is not installed")

from .__main__ import main
from .mutants import Key, all_mutants, draw
from .survivors import Reasons, StaleReasonError
from .trial import ROOT, Bench, Kept, Verdict

PACKAGE = ROOT / "engine" / "lazypv"
MODULE = """
from __future__ import annotations

USED: Final = 5
UNUSED: Final = 6

if TYPE_CHECKING and 1:
    pass
if TYPE_CHECKING:
    ONLY = 1 < 2


def walk(frames: int | None, *, limit: int = 7) -> int | None:
    if frames > USED:
        raise ValueError(f"{frames + 1} are too many", 3)
    return frames + limit


class Frames:
    def __repr__(self) -> str:
        return str(1 + 2)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose only code is the module above."""
    for room in ("host", "ultravisor"):
        (tmp_path / room).mkdir()
    (tmp_path / "host" / "walk.py").write_text(MODULE)
    return tmp_path


def test_annotations_messages_and_what_nobody_reads_are_left_alone(package):
    """The rule of places.py; what is left are conditions, results and numbers that somebody reads."""
    lines = {mutant.key.line for mutant in all_mutants(package)}
    assert lines == {
        "USED: Final = 5",
        "if TYPE_CHECKING and 1:",
        "def walk(frames: int | None, *, limit: int = 7) -> int | None:",
        "if frames > USED:",
        "return frames + limit",
    }
    signature = {mutant.key.operator for mutant in all_mutants(package) if mutant.key.line.startswith("def walk")}
    assert signature == {"NumberReplacer"}


def test_a_mutant_is_named_by_its_function_and_applied_to_text_only(package):
    mutants = {mutant.key: mutant for mutant in all_mutants(package)}
    key = Key("host/walk.py", "walk", "return frames + limit", "ReplaceBinaryOperator_Add_Sub", 0)
    assert mutants[key].change(package) == "return frames - limit"
    assert mutants[key].source(package) == MODULE.replace("frames + limit", "frames - limit")
    assert (package / "host" / "walk.py").read_text() == MODULE


def test_a_smaller_draw_begins_a_larger_one_and_other_lines_do_not_change_it(package):
    """No two mutants at one place; an edit elsewhere moves nobody."""
    mutants = all_mutants(package)
    drawn = [mutant.key for mutant in draw(mutants, 100, 1, package)]
    assert [mutant.key for mutant in draw(mutants, 3, 1, package)] == drawn[:3]
    assert len(drawn) == len({mutant.place for mutant in mutants})
    assert drawn != [mutant.key for mutant in draw(mutants, 100, 2, package)]
    path = package / "host" / "walk.py"
    path.write_text(MODULE.replace("UNUSED: Final = 6", "UNUSED: Final = 6\nMORE = USED * 2"))
    again = [mutant.key for mutant in draw(all_mutants(package), 100, 1, package)]
    assert [key for key in again if "MORE" not in key.line] == drawn


def test_every_reason_is_about_a_mutant_that_there_is():
    Reasons().require_in({mutant.key for mutant in all_mutants(PACKAGE)})


def test_a_reason_out_of_date_is_an_error(tmp_path):
    key = Key("host/walk.py", "walk", "return 1", "NumberReplacer", 0)
    path = tmp_path / "survivors.toml"
    row = '[[survivor]]\nmodule = "host/walk.py"\nfunction = "walk"\nline = "return 1"\noperator = "NumberReplacer"\n'
    path.write_text(row + 'reason = "Nobody looks."\n')
    reasons = Reasons(path)
    assert reasons.of(key) == "Nobody looks."
    reasons.require_in({key})
    reasons.require_none_of(set())
    with pytest.raises(StaleReasonError, match="no such mutant"):
        reasons.require_in(set())
    with pytest.raises(StaleReasonError, match="noticed"):
        reasons.require_none_of({key})
    path.write_text(row + 'reason = ""\n')
    with pytest.raises(StaleReasonError, match="empty"):
        Reasons(path)


def test_a_trial_changes_nothing_but_its_copy():
    """The checkout stays as it is, and the copy goes away."""
    line = "UVC_RC_INV_GHANDLE: Final = 0x0020"
    mutant = next(mutant for mutant in all_mutants(PACKAGE) if mutant.key.line == line)
    before = (PACKAGE / mutant.key.module).read_text()
    bench = Bench(ROOT, budget=60)
    try:
        verdict = bench.try_mutant(mutant)
    finally:
        bench.close()
    assert (verdict.outcome, verdict.check) == ("violation", "codes are the published ones")
    assert (PACKAGE / mutant.key.module).read_text() == before
    assert not bench.package.exists()


def test_verdicts_are_kept_for_the_same_sources_only(tmp_path):
    mutant = all_mutants(PACKAGE)[0]
    path = tmp_path / "verdicts.jsonl"
    Kept(path, "these").add(mutant, Verdict("survived", "", "", 1.0))
    assert Kept(path, "these").verdicts == {str(mutant.key): Verdict("survived", "", "", 1.0)}
    assert Kept(path, "others").verdicts == {}


def test_bad_arguments_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--count", "many"])
    assert ended.value.code == 2
    assert "invalid int value" in capsys.readouterr().err
