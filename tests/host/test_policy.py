"""A teardown policy can be exchanged: the host asks it at six moments, and an error of its code is told as its own.

Source: issue 3, "Your own protocol".
"""

from __future__ import annotations

import pickle
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import lazypv
from lazypv.errors import DeadlockError, ModelError, PolicyError, UsageError, ViolationError
from lazypv.host import kvm
from lazypv.host.kvm import Result
from lazypv.host.policy import METHODS, Guarded, blame, lacks
from lazypv.policy import SeriesTeardown, export_unmapped, load_policy, loading
from lazypv.ultravisor import Answer

from .worlds import GUEST_PAGES, LIMIT_PAGES, REFUSED

HEADER = "from lazypv.policy import *\n\n"


class Asked(SeriesTeardown):
    """The series' way; writes down what it was asked."""

    def __init__(self):
        self.asked = []

    async def enabled(self, vm):
        self.asked.append("enabled")
        await super().enabled(vm)

    async def reset(self, vm):
        self.asked.append("reset")
        return await super().reset(vm)

    async def closed(self, vm):
        self.asked.append("closed")
        return await super().closed(vm)

    async def abandoned(self, vm, answer):
        self.asked.append("abandoned")
        await super().abandoned(vm, answer)

    async def immediate(self, vm):
        self.asked.append("immediate")
        return await super().immediate(vm)

    async def unmapped(self, host, mm, vma, at):
        if self.asked[-1] != "unmapped":
            self.asked.append("unmapped")
        return await super().unmapped(host, mm, vma, at)


# --- six moments -------------------------------------------------------------------------------------------------


def test_a_policy_is_asked_when_a_guest_is_enabled_reset_unmapped_and_closed(make_world):
    policy = Asked()
    world = make_world(policy=policy)
    world.full_guest()
    assert world.disable() == Result(0, 1, 42)
    world.drain()
    world.protect()
    world.exit()
    world.drain()
    assert policy.asked == ["enabled", "reset", "enabled", "unmapped", "closed", "reset"]
    world.check()


def test_a_policy_is_asked_what_to_do_when_a_cpu_stays(make_world):
    policy = Asked()
    world = make_world(policy=policy)
    world.protect()
    world.fail("DESTROY_SEC_CPU", REFUSED)
    world.exit()
    assert policy.asked == ["enabled", "unmapped", "abandoned"]


def test_a_policy_is_asked_to_destroy_at_once_what_must_be_destroyed_again(make_world):
    """Semantics 3.6, 0x8000: the answer to CREATE_SEC_CONF was bad, but its handle is valid."""
    policy = Asked()
    world = make_world(policy=policy)
    create = world.machine.ultravisor.create_sec_conf
    world.machine.ultravisor.create_sec_conf = lambda *given: Answer(1, 0x8104, 0, create(*given).handle)
    assert world.run(kvm.enable(world.vm)).rc == 0x8104
    assert policy.asked == ["immediate"]


def test_what_becomes_of_pages_when_an_address_space_dies_is_the_policys(make_world):
    """One that exports leaves nothing on the list, and pays an export for each page."""

    class Exports(SeriesTeardown):
        async def unmapped(self, host, mm, vma, at):
            return await export_unmapped(host, mm, vma, at)

    spent = {}
    for policy in (None, Exports()):
        world = make_world(policy=policy)
        world.full_guest()
        before = world.issued("CONV_FROM_SEC_STOR")
        world.exit()
        world.drain()
        world.check()
        spent[policy is None] = world.issued("CONV_FROM_SEC_STOR") - before
    assert spent[False] > GUEST_PAGES > spent[True]


def test_a_policy_that_cleans_with_the_configuration_first_leaves_a_clean_machine(make_world):
    world = make_world(policy=load_policy(f"{EXAMPLES}/configuration_first.py:ConfigurationFirst").make())
    old = world.full_guest()
    assert world.disable().rrc == 42
    world.drain()
    assert world.firmware.history[old][1] == GUEST_PAGES - LIMIT_PAGES
    world.check()
    world.exit()
    world.drain()
    assert world.machine.frames.free() == world.free_at_start


EXAMPLES = Path(__file__).parents[2] / "examples"


# --- what is a policy --------------------------------------------------------------------------------------------


def test_the_series_is_a_policy_and_nothing_is_asked_that_it_does_not_answer():
    assert lacks(SeriesTeardown()) == []
    assert {name for name in vars(Guarded) if not name.startswith("_")} - {"blame"} == set(METHODS)


def test_what_is_no_policy_is_refused_with_what_it_lacks(machine):
    class Half:
        async def reset(self, vm):
            pass

        async def closed(self):
            pass

        def abandoned(self, vm, answer):
            pass

    with pytest.raises(UsageError) as refused:
        lazypv.Host(machine, policy=Half())
    assert str(refused.value) == (
        "Half is not a teardown policy: it has no method enabled; its closed does not take (vm); its abandoned is not"
        " an async method; it has no method immediate; it has no method unmapped"
    )


# --- its errors --------------------------------------------------------------------------------------------------


class Raises(SeriesTeardown):
    async def reset(self, vm):
        await vm.mm.read_users()
        return vm.nothing


class RaisesInItsThread(SeriesTeardown):
    async def in_background(self, vm, record):
        await record.mm.read_users()
        raise KeyError("lost")


class CallsWrongly(SeriesTeardown):
    async def reset(self, vm):
        await vm.host.pages.export_owned("these")


class NoResult(SeriesTeardown):
    async def reset(self, vm):
        return 0


class GoesNowhere(SeriesTeardown):
    async def unmapped(self, host, mm, vma, at):
        return at


class Waits(SeriesTeardown):
    async def reset(self, vm):
        async with vm.kvm.lock.exclusive():
            return Result(0, 1, 0)


class DropsTwice(SeriesTeardown):
    async def in_background(self, vm, record):
        await super().in_background(vm, record)
        await record.mm.drop()
        await record.mm.drop()
        await record.mm.drop()


@pytest.fixture
def reboot():
    """Reboot a guest of a library's host under a policy, wait for all cleaning, end the process."""
    machine = lazypv.Machine("72MiB")

    def reboot(policy):
        host = lazypv.Host(machine, policy=policy, sync_below="1MiB")
        try:
            vm = host.create_vm("4MiB", vcpus=1)
            vm.protect()
            vm.reboot()
            host.drain()
            vm.protect()
            vm.shutdown()
            host.drain()
            return host.check()
        finally:
            host.close()

    yield reboot
    machine.close()


def test_a_library_host_takes_a_policy(reboot):
    policy = Asked()
    assert reboot(policy) == []
    assert policy.asked == ["enabled", "reset", "enabled", "unmapped", "closed", "reset"]


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (
            Raises,
            r"policy Raises \(reboot, after Release\(kvm->lock\)\): .*test_policy.py:\d+, in reset: AttributeError",
        ),
        (
            RaisesInItsThread,
            r"\(kvm_s390_pv_destroy_vm_thread, .*test_policy.py:\d+, in in_background: KeyError: 'lost'",
        ),
        (CallsWrongly, r"test_policy.py:\d+, in reset: AttributeError"),
        (NoResult, r"policy NoResult \(reboot, .*\): TypeError: reset gave back 0, not a Result"),
        (GoesNowhere, r"ValueError: unmapped gave back 0, not an entry above 0 and up to \d+"),
    ],
)
def test_what_a_policy_raises_is_told_as_its_error_with_actor_step_file_and_line(reboot, policy, told):
    with pytest.raises(PolicyError, match=told) as raised:
        reboot(policy())
    assert raised.value.exit_status == 2
    assert "\n" not in str(raised.value)


def test_an_error_that_has_nothing_to_do_with_the_policy_is_not_blamed_on_it():
    with pytest.raises(KeyError) as raised:
        raise KeyError("ours")
    assert blame(SeriesTeardown(), "main", raised.value) is None
    assert blame(Asked(), "main", raised.value) is not None, "this file is that policy's"


@pytest.mark.parametrize(("policy", "error"), [(Waits, DeadlockError), (DropsTwice, ModelError)])
def test_what_a_policy_does_to_the_host_is_a_violation_of_the_models_rules(reboot, policy, error):
    loaded = loading.LoadedPolicy("mine.py:Mine", "", policy)
    with pytest.raises(ViolationError, match=r"under the policy mine.py:Mine: ") as raised, loaded.blamed():
        reboot(policy())
    assert raised.value.exit_status == 3
    assert isinstance(raised.value.__cause__, error)


# --- by name -----------------------------------------------------------------------------------------------------


def written(folder, source, name="mine.py"):
    path = folder / name
    path.write_text(source, encoding="utf-8")
    return path


def test_a_policy_is_loaded_from_a_file_that_is_read_once_and_leaves_nothing_beside_it(tmp_path):
    path = written(tmp_path, HEADER + "class Mine(SeriesTeardown):\n    pass\n")
    one, again = (load_policy(f"{path}:Mine") for _ in range(2))
    assert isinstance(one.make(), SeriesTeardown)
    assert one.make is again.make
    assert one.make() is not one.make()
    assert [each.name for each in tmp_path.iterdir()] == ["mine.py"]


def test_a_policy_goes_to_another_process_by_its_name(tmp_path):
    path = written(tmp_path, HEADER + "class Mine(SeriesTeardown):\n    pass\n")
    one = load_policy(f"{path}:Mine")
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_dataclass_of_the_file_works(tmp_path):
    """It looks its module up by name."""
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n" + HEADER
    path = written(tmp_path, source + "@dataclass\nclass Mine(SeriesTeardown):\n    moves: int = 0\n")
    assert load_policy(f"{path}:Mine").make().moves == 0


def test_a_file_whose_digest_is_another_is_not_run(tmp_path):
    path = written(tmp_path, HEADER + "class Mine(SeriesTeardown):\n    pass\n")
    digest = load_policy(f"{path}:Mine").source
    written(
        tmp_path, f"open({str(tmp_path / 'was run')!r}, 'w')\n" + HEADER + "class Mine(SeriesTeardown):\n    pass\n"
    )
    with pytest.raises(UsageError, match=r"mine.py:Mine is not what it was: its source has the digest"):
        load_policy(f"{path}:Mine", digest)
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("source", "name", "told"),
    [
        ("class Mine(:\n", "Mine", r"mine.py: line 1: invalid syntax$"),
        ("import nothing_of_the_kind\n", "Mine", r"mine.py: line 1: ModuleNotFoundError: No module named 'nothing_of"),
        ("x = 1\n\nraise SystemExit(0)\n", "Mine", r"mine.py: line 3: SystemExit: 0$"),
        ("\0", "Mine", r"mine.py: .*null bytes"),
        (HEADER + "class Other(SeriesTeardown):\n    pass\n", "Mine", r"mine.py has no 'Mine': it has Other$"),
        ("Mine = 5\n", "Mine", r"mine.py:Mine is 5, not a class of teardown policies$"),
        ("class Mine:\n    pass\n", "Mine", r"mine.py:Mine is not a teardown policy: it has no method enabled; it has"),
        (
            "class Mine:\n    def __init__(self, a):\n        pass\n",
            "Mine",
            r"mine.py:Mine could not be made: TypeError",
        ),
    ],
)
def test_a_file_that_holds_no_policy_gets_one_clear_line(tmp_path, source, name, told):
    path = written(tmp_path, source)
    with pytest.raises(UsageError, match=told) as refused:
        load_policy(f"{path}:{name}")
    assert "\n" not in str(refused.value)
    assert not [name for name, module in sys.modules.items() if getattr(module, "__file__", "") == str(path)] or (
        "class" in source or source == "Mine = 5\n"
    )


@pytest.mark.parametrize(
    ("spelling", "told"),
    [
        ("nowhere.py:Mine", r"nowhere.py: No such file or directory$"),
        (".:Mine", r"\.: Is a directory$"),
        ("mine.py", r"'mine.py' names no policy: write FILE.py:NAME, such as mine.py:MyTeardown$"),
        ("hasty", r"'hasty' is not a policy: write FILE.py:NAME, or one of eager$"),
        ("", r"'' is not a policy"),
    ],
)
def test_a_bad_spelling_gets_one_clear_line(spelling, told):
    with pytest.raises(UsageError, match=told):
        load_policy(spelling, besides=["eager"])


@pytest.fixture
def announced(tmp_path, monkeypatch):
    """Entry points of an installed package."""
    written(tmp_path, HEADER + "class Mine(SeriesTeardown):\n    pass\n", "somebodys_package.py")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("theirs", "somebodys_package:Mine", loading.ENTRY_POINTS),
        EntryPoint("broken", "somebodys_package:Lost", loading.ENTRY_POINTS),
    ]
    monkeypatch.setattr(loading, "entry_points", lambda group: points if group == "lazypv.policies" else [])
    yield
    sys.modules.pop("somebodys_package", None)


@pytest.mark.usefixtures("announced")
def test_a_package_can_announce_a_policy():
    theirs = load_policy("theirs")
    assert type(theirs.make()).__module__ == "somebodys_package"
    assert load_policy("theirs", theirs.source) == theirs
    with pytest.raises(UsageError, match="theirs is not what it was"):
        load_policy("theirs", "0" * 32)
    with pytest.raises(
        UsageError, match=r"policy 'broken' .somebodys_package:Lost. could not be loaded: AttributeError"
    ):
        load_policy("broken")
    with pytest.raises(UsageError, match=r"or one of broken, theirs$"):
        load_policy("ours")
