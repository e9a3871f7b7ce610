"""The finer mode: a call is two steps, and somebody else may come between its effect and its text's going on."""

from __future__ import annotations

from lazypv.clocks.explore import Choice, ExploringClock
from lazypv.steps import Call


async def _calls(done):
    done.append(await Call("DESTROY_SEC_CONF", lambda: done.append("effect") or "answer"))


def test_a_call_is_one_step_unless_it_is_asked_for_in_two():
    done = []
    clock = ExploringClock()
    clock.start(_calls(done), "one")
    clock.take(Choice(0))
    assert done == ["effect", "answer"]


def test_in_two_steps_its_effect_comes_before_its_text_goes_on():
    done = []
    clock = ExploringClock(faults=lambda step: [("refused", lambda operation: "refused")])
    clock.claims = lambda step, page: None
    clock.start(_calls(done), "one")
    assert len(clock.faults_of(0)) == 1
    first = clock.take(Choice(0))
    assert done == ["effect"]
    assert first.step == "DESTROY_SEC_CONF"
    assert clock.faults_of(0) == []
    assert clock.take(Choice(0)).step == "go on after DESTROY_SEC_CONF"
    assert done == ["effect", "answer"]
    assert clock.enabled() == []
