"""The trace check: what the model allows passes, the first step that it does not is named.

Source: issue 3, item 8; design, "One protocol text, three clocks".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from lazypv.__main__ import run
from lazypv.errors import UsageError
from lazypv.explore.scenarios import SCENARIOS, Scenario
from lazypv.explore.switches import Switches
from lazypv.explore.world import Shape
from lazypv.host.secure_pages import FREEZE_FAILED
from lazypv.invariants import Violation
from lazypv.machine import PageTable
from lazypv.steps import Bulk, Call, Lock, Spawn, Touch, Wait
from lazypv.trace import check as checking
from lazypv.trace.check import check
from lazypv.trace.file import Setting, TraceError, TraceFile
from lazypv.trace.record import record
from lazypv.ultravisor import Answer, BulkAnswer

from . import corpus, thousand

GOOD = sorted(path.name for path in corpus.FOLDER.glob("good-*.jsonl"))
BAD = {
    "bad-cpu-not-destroyed.jsonl": (("Alloc", "record"), "DESTROY_SEC_CPU"),
    "bad-lock-not-taken.jsonl": (("Call", "gather"), "take mmap_lock shared"),
    "bad-lock-not-released.jsonl": (("Bulk", "guest access"), "release kvm->lock"),
    "bad-page-refused.jsonl": (("Bulk", "destroy pages"), None),
    "bad-configuration-never-destroyed.jsonl": (("Touch", "protected counter"), "DESTROY_SEC_CONF"),
    "bad-cut-short.jsonl": (None, None),
    "bad-reference-not-dropped.jsonl": (("Touch", "mm_users"), "write mm_count"),
    "bad-walk-not-batched.jsonl": (("Acquire", "mmap_lock"), "read mm_users"),
    "bad-not-exported-before-import.jsonl": (("Bulk", "make secure"), "read protected counter"),
}
"""Of each bad trace the step that is refused, and what the model has in its place."""


# --- the corpus --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
def test_a_good_trace_is_allowed(name):
    assert check(TraceFile.load(corpus.FOLDER / name)).refusal is None


def test_the_corpus_has_good_and_bad_traces():
    assert len(GOOD) == len(corpus.GOOD)
    assert sorted(path.name for path in corpus.FOLDER.glob("bad-*.jsonl")) == sorted(BAD)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_trace_is_refused_at_its_first_step_that_the_model_does_not_allow(name):
    trace = TraceFile.load(corpus.FOLDER / name)
    refusal = check(trace).refusal
    step, instead = BAD[name]
    assert refusal is not None
    if step is None:
        assert refusal.line == len(trace.lines) + 2
        assert refusal.says is None
    else:
        assert refusal.says == trace.lines[refusal.line - 2]
        assert (refusal.says["kind"], refusal.says["what"]) == step
    if instead is not None:
        assert (refusal.says["actor"], instead) in refusal.allowed


def test_a_good_trace_of_operations_that_overlap_is_among_them():
    assert any(corpus.overlapping(TraceFile.load(corpus.FOLDER / name).lines) for name in GOOD)


# --- recorded on real threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_real_threads_do_is_allowed(name):
    setting = Setting(name, SCENARIOS[name].shape.pages, Switches())
    world = setting.build()
    for seed in range(3):
        trace, broken = record(setting, seed, world)
        assert broken is None
        checked = check(trace, world)
        assert checked.refusal is None, checked.as_text()
        assert checked.lines == len(trace.lines) > 10


def test_mutants_are_refused_or_shown_to_be_equivalent():
    """A sample of `python -m tests.trace.thousand`."""
    tally = thousand.run(60, seed=2)
    assert tally.wrong == []
    assert sum(tally.refused.values()) + sum(tally.equivalent.values()) == 60
    assert set(tally.equivalent) <= {"swapped"}
    assert tally.share_refused() > 0.8


def test_a_trace_of_another_series_is_refused_and_allowed_by_its_own():
    """Patch 05: without it all pages are gathered with one hold of the lock."""
    setting = Setting("shutdown-during-cleanup", 3, Switches(without=("05",)))
    trace, _ = record(setting, 1)
    assert check(trace).refusal is None
    repaired = replace(trace, setting=replace(setting, switches=Switches()))
    refusal = check(repaired).refusal
    assert ("qemu", "read mm_users") in refusal.allowed


# --- small scenes: operations that overlap -----------------------------------------------------------------------


class Pages:
    """A world of three pages, each of which can be taken once; everything else that a check asks of a world."""

    vms = ()

    def __init__(self):
        self.restore()

    def restore(self):
        self.there = np.ones(3, np.bool_)
        self.lock = Lock("page lock")
        self.violation = None

    def take(self, pages):
        done = int(np.count_nonzero(self.there[pages]))
        self.there[pages] = False
        return BulkAnswer(np.ones(pages.size, np.uint16), done, pages.size - done)

    def look(self):
        return self.violation

    look_at_the_end = look

    def digest(self, _texts):
        return hash(self.there.tobytes())


@dataclass
class Scene:
    """Checks hand-written lines against texts that are made here."""

    texts: dict
    world: type = Pages

    def check(self, lines):
        SCENARIOS["a test"] = Scenario("a test", "", self.start, Shape(), (1,))
        return check(TraceFile(Setting("a test", 2, Switches()), lines), self.world())

    def start(self, world):
        return [(name, text(world)) for name, text in self.texts.items()]


@pytest.fixture(autouse=True)
def _no_scene_is_left():
    yield
    SCENARIOS.pop("a test", None)


async def takes(world, *pages):
    await Bulk("take", world.take, np.array(pages))


BOTH = Scene({"one": lambda world: takes(world, 0, 1), "two": lambda world: takes(world, 1)})


def begin(actor, *pages, what="take"):
    return {"actor": actor, "kind": "Bulk", "what": what, "at": "begin", "pages": list(pages)}


def ends(actor, done, noop, what="take", **counts):
    answer = {"rc": [1] * (done + noop), "done": done, "noop": noop, "busy": 0, "refused": 0, **counts}
    return {"actor": actor, "kind": "Bulk", "what": what, "at": "end", "answer": answer}


def last(actor, what="take", kind="Bulk"):
    return [{"actor": actor, "kind": kind, "what": what, "at": "resume"}, {"actor": actor, "kind": "End"}]


@pytest.mark.parametrize("first", [2, 1])
def test_operations_that_overlap_may_take_effect_in_any_order(first):
    one, two = (ends("one", first, 2 - first), ends("two", 2 - first, first - 1))
    for order in ([one, two], [two, one]):
        lines = [begin("one", 0, 1), begin("two", 1), *order, *last("one"), *last("two")]
        assert BOTH.check(lines).refusal is None


def test_an_answer_that_no_order_gives_is_refused():
    """Both have taken page 1."""
    lines = [begin("one", 0, 1), begin("two", 1), ends("one", 2, 0), ends("two", 1, 0), *last("one"), *last("two")]
    refusal = BOTH.check(lines).refusal
    assert refusal.line == 5
    assert "'done': 0, 'noop': 1" in refusal.why


def test_operations_that_do_not_overlap_take_effect_in_the_order_of_the_lines():
    lines = [begin("one", 0, 1), ends("one", 1, 1), begin("two", 1), ends("two", 1, 0), *last("one"), *last("two")]
    checked = BOTH.check(lines)
    assert checked.refusal.line == 3
    assert checked.orders == 1


def test_a_bulk_step_may_be_done_in_parts():
    parts = [begin("one", 0), ends("one", 1, 0), begin("one", 1), ends("one", 1, 0)]
    other = [begin("two", 1), ends("two", 0, 1)]
    assert BOTH.check([*parts, *other, *last("one"), *last("two")]).refusal is None
    other = [begin("two", 1), ends("two", 1, 0)]
    refusal = BOTH.check([*parts[:2], *other, *last("one"), *last("two")]).refusal
    assert "take of one has not come to its end" in refusal.why


@pytest.mark.parametrize("pages", [(1, 0), (0, 2), (0, 1, 2), ()])
def test_a_bulk_step_is_about_the_pages_of_the_model_in_their_order(pages):
    lines = [begin("one", *pages), ends("one", len(pages), 0), *last("one"), begin("two", 1)]
    refusal = BOTH.check(lines).refusal
    assert refusal.line == 2
    assert "take of one is about pages [0, 1], in that order" in refusal.why


def test_a_bulk_step_of_no_pages_is_a_step_all_the_same():
    async def nothing(world):
        await Bulk("take", world.take, np.empty(0, np.int64))

    scene = Scene({"one": nothing})
    assert scene.check([begin("one"), ends("one", 0, 0), *last("one")]).refusal is None
    assert "about pages []" in scene.check([begin("one", 1), ends("one", 1, 0), *last("one")]).refusal.why


def test_orders_that_come_to_the_same_state_are_not_gone_on_from_twice(monkeypatch):
    """Three pages of one, three of the other, in any order; nobody can tell one from another."""
    scene = Scene({"one": lambda world: takes(world, 0, 1, 2), "two": lambda world: reads(world, 0, 1, 2)})
    read = [begin("two", 0, 1, 2, what="read"), ends("two", 3, 0, "read")]
    lines = [begin("one", 0, 1, 2), *read, ends("one", 3, 0), instant("one", "Touch", "nothing", write=False)]
    checked = scene.check(lines)
    assert checked.refusal.line == 6
    assert checked.all_tried
    monkeypatch.setattr(checking._Search, "is_new", lambda *_: True)
    every = scene.check(lines)
    assert every.refusal == checked.refusal
    assert checked.orders < every.orders


async def reads(_world, *pages):
    await Bulk("read", lambda part: BulkAnswer(np.ones(part.size, np.uint16), part.size), np.array(pages))


def test_a_page_is_busy_only_while_another_operation_is_under_way():
    busy = ends("two", 0, 0, rc=[0], busy=1)
    again = Scene({"one": BOTH.texts["one"], "two": takes_twice})
    rest = [begin("two", 1), ends("two", 0, 1), *last("one"), *last("two")]
    resume = last("two")[0]
    overlapping = [begin("one", 0, 1), begin("two", 1), busy, resume, ends("one", 2, 0), *rest]
    assert again.check(overlapping).refusal is None
    one_after_the_other = [begin("one", 0, 1), ends("one", 2, 0), begin("two", 1), busy, resume, *rest]
    assert "not 0x0000" in again.check(one_after_the_other).refusal.why


async def takes_twice(world):
    await takes(world, 1)
    await takes(world, 1)


def test_a_call_takes_effect_before_its_text_goes_on():
    """The other one changes what the call has answered, before the text of the call goes on."""

    async def asks(world):
        answer = await Call("ask", lambda: Answer(0, int(world.there[2])))
        assert answer.rc == 1

    scene = Scene({"one": asks, "two": lambda world: takes(world, 2)})
    call = {"actor": "one", "kind": "Call", "what": "ask"}
    answer = {"cc": 0, "rc": 1, "rrc": 0, "handle": 0, "pages": 0}
    asked = [{**call, "at": "begin"}, {**call, "at": "end", "answer": answer}]
    taken = [begin("two", 2), ends("two", 1, 0)]
    assert scene.check([*asked, *taken, *last("one", "ask", "Call"), *last("two")]).refusal is None
    refusal = scene.check([*taken, *asked, *last("one", "ask", "Call"), *last("two")]).refusal
    assert "'rc': 0" in refusal.why


def test_a_search_that_is_cut_off_says_so(monkeypatch):
    monkeypatch.setattr(checking, "MOST_ORDERS", 1)
    lines = [begin("one", 0, 1), begin("two", 1), ends("one", 1, 1), ends("two", 1, 0), *last("one"), *last("two")]
    checked = BOTH.check(lines)
    assert not checked.all_tried
    assert checked.as_object()["all_orders_tried"] is False
    assert "there are more" in checked.as_text()


# --- small scenes: what only shows while operations overlap -------------------------------------------------------


class References:
    """How many references each frame has."""

    def __init__(self):
        self.of = np.array([1, 2, 1])

    def get(self, frames):
        self.of[frames] += 1

    def put(self, frames):
        self.of[frames] -= 1


class Reimported(Pages):
    """A guest imports page 1 anew while the old run's pages are destroyed, one reference held for that on page 1."""

    vms = (SimpleNamespace(guest_pages=3, gmap=SimpleNamespace(pte=PageTable(np.arange(1, 4, dtype=np.uint32), 0, 3))),)

    def restore(self):
        super().restore()
        self.machine = SimpleNamespace(frames=References())

    def take(self, pages):
        self.machine.frames.put(pages)
        return super().take(pages)

    def make_secure(self, pages):
        self.there[pages] = False
        if self.machine.frames.of[pages] > 1:
            return BulkAnswer(np.full(1, FREEZE_FAILED, np.uint16), 0, refused=1)
        return BulkAnswer(np.ones(1, np.uint16), 1)

    async def imports(self, looks):
        if looks:
            await Call("look", lambda: Answer(0, int(self.there[1])))
        await Bulk("make secure", self.make_secure, np.array([1]))

    def digest(self, _texts):
        return hash((self.there.tobytes(), self.machine.frames.of.tobytes()))


def reimported(*, looks):
    return Scene({"one": lambda world: world.imports(looks), "two": lambda world: takes(world, 1)}, Reimported)


def test_a_freeze_may_fail_for_a_reference_that_is_about_to_go():
    """The page is seen destroyed already; its destroyer has not dropped his reference yet, but does so at once."""
    look = {"actor": "one", "kind": "Call", "what": "look"}
    answer = {"cc": 0, "rc": 0, "rrc": 0, "handle": 0, "pages": 0}
    looks = [{**look, "at": "begin"}, {**look, "at": "end", "answer": answer}, {**look, "at": "resume"}]
    failed = ends("one", 0, 0, "make secure", rc=[FREEZE_FAILED], refused=1)
    imports = [begin("one", 1, what="make secure"), failed]
    rest = [*last("one", "make secure"), *last("two")]
    scene = reimported(looks=True)
    assert scene.check([begin("two", 1), *looks, *imports, ends("two", 1, 0), *rest]).refusal is None
    refusal = scene.check([begin("two", 1), ends("two", 1, 0), *looks, *imports, *rest]).refusal
    assert "not 0xffff" in refusal.why


def test_a_page_may_be_exported_long_before_it_is_imported():
    """Its destroyer finds it exported, and has dropped his reference by the time of the freeze."""
    destroyed = [begin("two", 1), ends("two", 0, 1)]
    imports = begin("one", 1, what="make secure"), ends("one", 1, 0, "make secure")
    rest = [*last("one", "make secure"), *last("two")]
    scene = reimported(looks=False)
    assert scene.check([imports[0], *destroyed, imports[1], *rest]).refusal is None
    assert scene.check([*destroyed, *imports, *rest]).refusal is not None


def test_a_call_is_busy_only_while_another_operation_is_under_way():
    """Condition code 3, nothing cleaned: what it should clean was claimed by the other."""

    async def cleans(_world):
        while (await Call("clean", lambda: Answer(0, 1, pages=1))).cc:
            pass

    scene = Scene({"one": cleans, "two": lambda world: takes(world, 0)})
    call = {"actor": "one", "kind": "Call", "what": "clean"}
    counts = {"rrc": 0, "handle": 0}

    def cleaned(cc, rc, pages):
        answer = {"cc": cc, "rc": rc, **counts, "pages": pages}
        return [{**call, "at": "begin"}, {**call, "at": "end", "answer": answer}, {**call, "at": "resume"}]

    partly, wholly, one_ends = cleaned(3, 0, 0), cleaned(0, 1, 1), {"actor": "one", "kind": "End"}
    taken = [begin("two", 0), ends("two", 1, 0)]
    assert scene.check([taken[0], *partly, taken[1], *wholly, one_ends, *last("two")]).refusal is None
    refusal = scene.check([*taken, *partly, *wholly, one_ends, *last("two")]).refusal
    assert refusal.says == partly[1]


# --- small scenes: locks, conditions, ends -----------------------------------------------------------------------


async def locks(world):
    async with world.lock.exclusive():
        await Touch(world, "there")


def instant(actor, kind, what, **more):
    return {"actor": actor, "kind": kind, "what": what, **more}


def test_a_lock_that_somebody_holds_cannot_be_taken():
    scene = Scene({"one": locks, "two": locks})
    takes_it = [instant(actor, "Acquire", "page lock", shared=False) for actor in ("one", "two")]
    refusal = scene.check([*takes_it, instant("one", "Touch", "there", write=False)]).refusal
    assert (refusal.line, refusal.allowed) == (3, [("one", "read there")])
    assert "the lock is not free" in refusal.why


def test_a_condition_has_to_hold():
    async def waits(world):
        await Wait(lambda: not world.there[1], "page 1 to go")

    scene = Scene({"one": lambda world: takes(world, 1), "two": waits})
    went = [begin("one", 1), ends("one", 1, 0), *last("one")]
    waited = [instant("two", "Wait", "page 1 to go"), {"actor": "two", "kind": "End"}]
    assert scene.check([*went, *waited]).refusal is None
    assert "the condition does not hold" in scene.check([*waited, *went]).refusal.why


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"actor": "three"}, "no actor 'three'"),
        ({"what": "mm_users"}, "the next step of one is another: read there"),
        ({"write": True}, "only reads it"),
    ],
)
def test_a_step_that_is_another_is_refused(change, says):
    scene = Scene({"one": locks, "two": locks})
    lines = [
        instant("one", "Acquire", "page lock", shared=False),
        {**instant("one", "Touch", "there", write=False), **change},
    ]
    refusal = scene.check(lines).refusal
    assert refusal.line == 3
    assert says in refusal.why


def test_every_actor_has_to_end_once():
    scene = Scene({"one": lambda world: takes(world, 0)})
    lines = [begin("one", 0), ends("one", 1, 0), *last("one")]
    assert scene.check(lines).refusal is None
    assert "without the end of one" in scene.check(lines[:-1]).refusal.why
    assert "ended before" in scene.check([*lines, lines[-1]]).refusal.why


def test_an_end_with_an_error_is_not_that_of_a_text_that_has_none():
    scene = Scene({"one": lambda world: takes(world, 0)})
    resume, end = last("one")
    refusal = scene.check([begin("one", 0), ends("one", 1, 0), resume, {**end, "error": "UsageError"}]).refusal
    assert (refusal.line, refusal.why) == (5, "one does not end with UsageError")


@pytest.mark.parametrize("name", ["one", None, "child"])
def test_a_thread_has_a_name_of_its_own(name):
    async def child():
        await Touch(None, "nothing")

    async def parent(_world):
        await Spawn("child", child)

    lines = [
        instant("one", "Spawn", "child", answer=name),
        {"actor": "one", "kind": "End"},
        instant(name or "child", "Touch", "nothing", write=False),
        {"actor": name, "kind": "End"},
    ]
    refusal = Scene({"one": parent}).check(lines).refusal
    if name == "child":
        assert refusal is None
    else:
        assert refusal.line == 2
        assert "a name of its own" in refusal.why


def test_what_is_broken_at_the_end_is_named():
    class Leaky(Pages):
        def look_at_the_end(self):
            return Violation(34, "a page is leaked")

    scene = Scene({"one": lambda world: takes(world, 0)}, Leaky)
    refusal = scene.check([begin("one", 0), ends("one", 1, 0), *last("one")]).refusal
    assert (refusal.line, refusal.why) == (6, "invariant 34 is broken: a page is leaked")


def test_an_invariant_that_a_step_breaks_is_named():
    async def breaks(world):
        await Touch(world, "there")
        world.violation = Violation(1, "a page is nobody's")

    refusal = Scene({"one": breaks}).check([instant("one", "Touch", "there", write=False)]).refusal
    assert (refusal.line, refusal.why) == (2, "invariant 1 is broken: a page is nobody's")


# --- commands and files ------------------------------------------------------------------------------------------


def test_a_trace_is_recorded_and_checked_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    assert run(["trace", "shutdown", "--pages", "3", "--seed", "4", "-o", str(path)]) == 0
    assert run(["check", str(path)]) == 0
    assert "The model allows it" in capsys.readouterr().out
    lines = path.read_text().splitlines()
    assert json.loads(lines[0])["pages"] == 3
    at = next(at for at, line in enumerate(lines) if "DESTROY_SEC_CONF" in line)
    path.write_text("\n".join(lines[:at] + lines[at + 1 :]))
    assert run(["check", str(path), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "lazypv.check/1"
    assert report["allowed"] is False
    assert report["refusal"]["line"] == at + 1
    assert {"actor": json.loads(lines[at])["actor"], "step": "DESTROY_SEC_CONF"} in report["refusal"]["allowed"]


def test_a_trace_goes_to_standard_output_unless_a_file_is_named(capsys):
    assert run(["trace", "shutdown", "--pages", "2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert json.loads(out[0])["schema"] == "lazypv.trace/1"
    assert json.loads(out[-1])["kind"] == "End"


def test_a_check_against_another_series_takes_the_place_of_the_header(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    assert run(["trace", "shutdown-during-cleanup", "--pages", "2", "--without", "05", "-o", str(path)]) == 0
    assert run(["check", str(path)]) == 0
    assert run(["check", str(path), "--preset", "repaired"]) == 3
    assert "read mm_users" in capsys.readouterr().out


def test_a_run_that_breaks_down_is_written_and_said(tmp_path, capsys):
    """As a user of the model may do with texts of his own."""

    async def breaks(world):
        await Touch(world, "nothing")
        raise UsageError("a text gave up")

    SCENARIOS["a test"] = Scenario("a test", "", lambda world: [("one", breaks(world))], Shape(), (1,))
    path = tmp_path / "run.jsonl"
    assert run(["trace", "a test", "--pages", "2", "-o", str(path)]) == 3
    assert "a text gave up" in capsys.readouterr().err
    assert json.loads(path.read_text().splitlines()[-1]) == {"actor": "one", "kind": "End", "error": "UsageError"}
    assert run(["check", str(path)]) == 3
    assert "a text gave up" in capsys.readouterr().out


HEADER = json.dumps(Setting("shutdown", 2, Switches()).as_object())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the file is empty"),
        ("\xff", "line 1: is not JSON"),
        ("[1]", "line 1: an object was expected"),
        (HEADER.replace("trace/1", "trace/9"), "line 1: schema 'lazypv.trace/9' is not 'lazypv.trace/1'"),
        (HEADER.replace('"pages"', '"pgs"'), "line 1: the header lacks something"),
        (HEADER.replace("[]", '"07"', 1), "line 1: the header lacks something"),
        (HEADER.replace('"pages": 2', '"pages": "two"'), "line 1: scenario"),
        (HEADER + "\n{", "line 2: is not JSON"),
        (HEADER + '\n{"kind": "End"}', "line 2: names no actor"),
        (HEADER + '\n{"actor": "qemu", "kind": "Sleep"}', "line 2: kind 'Sleep' is none of"),
        (HEADER + '\n{"actor": "qemu", "kind": "Acquire", "what": "mmap_lock"}', "line 2: is not how a Acquire"),
        (HEADER + '\n{"actor": "qemu", "kind": "Call", "what": "gather", "at": "middle"}', "line 2: is not how a Call"),
        (
            HEADER + '\n{"actor": "qemu", "kind": "Bulk", "what": "take", "at": "begin", "pages": [1.5]}',
            "line 2: pages, codes and counts",
        ),
        (
            HEADER + '\n{"actor": "qemu", "kind": "Bulk", "what": "take", "at": "end", "answer": {"rc": [1]}}',
            "line 2: pages, codes and counts",
        ),
        (HEADER + '\n{"actor": "qemu", "kind": "End", "what": "gather"}', "line 2: an End has nothing"),
    ],
)
def test_a_malformed_trace_is_bad_input(text, says, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    assert run(["check", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scenario": "nowhere"}, "nowhere"),
        ({"pages": 9}, "9 pages are refused"),
        ({"switches": {"preset": "repaired", "without": ["99"], "defects": []}}, "99"),
    ],
)
def test_a_setting_that_does_not_exist_is_bad_input(change, says, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({**json.loads(HEADER), **change}))
    assert run(["check", str(path)]) == 2
    assert says in capsys.readouterr().err


def test_bytes_that_are_no_text_are_bad_input(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TraceError, match="is not text"):
        TraceFile.load(path)


def test_a_trace_is_read_as_it_was_written(tmp_path):
    trace, _ = record(Setting("shutdown", 2, Switches()), 0)
    path = tmp_path / "run.jsonl"
    trace.save(path)
    assert TraceFile.load(path) == trace
