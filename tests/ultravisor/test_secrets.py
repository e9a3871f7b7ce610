"""Keys stay where they are: no repr, no message shows one."""

from __future__ import annotations

import gc

import numpy as np

from lazypv.ultravisor import ImageHeader

from .guests import Guest, empty_header, firmware_of, pages


def written_forms(key):
    """How a key would look in a text: bytes, hexadecimal, list, NumPy array; a quarter of it is enough to be caught."""
    part = bytes(key)[:8]
    return [part.hex(), repr(part)[2:-1], repr(list(part))[1:-1], " ".join(map(str, part)), ", ".join(map(hex, part))]


def is_ours(thing):
    return str(type(thing).__module__).startswith("lazypv.")


def test_keys_never_appear_in_the_repr_of_any_object(machine):
    """Design, cryptography: keys never appear in repr, tracebacks, arguments, traces, snapshots."""
    guest = Guest(machine, np.arange(10, 14))
    guest.fill(guest.all_pages, 1)
    machine.ultravisor.export_pages(guest.frames)
    header = ImageHeader.seal(np.zeros((2, 4096), np.uint8), 0)
    firmware = firmware_of(machine)
    keys = [firmware.keys[guest.slot], header._key[0]]
    forms = [form for key in keys for form in written_forms(key)]
    ours = [thing for thing in gc.get_objects() if is_ours(thing)]
    kinds = {type(thing).__name__ for thing in ours}
    assert kinds >= {"Machine", "Ultravisor", "Firmware", "Configuration", "SecureCpu", "ImageHeader", "HostFrames"}
    for thing in [*ours, machine.ultravisor.import_pages(guest.handle, pages(0)), guest.cpu()]:
        text = repr(thing) + str(thing)
        assert not any(form in text for form in forms), type(thing).__name__


def test_every_configuration_has_a_fresh_key_that_dies_with_it(machine):
    """Design: a fresh random 256-bit key from the operating system for every configuration."""
    firmware = firmware_of(machine)
    seen = set()
    for _ in range(4):
        guest = Guest(machine, np.arange(10, 14))
        slot = guest.slot
        assert firmware.keys[slot].any()
        seen.add(firmware.keys[slot].tobytes())
        guest.stop()
        assert machine.ultravisor.destroy_sec_conf(guest.handle).ok
        assert not firmware.keys[slot].any()
        assert not firmware.directory[slot * 8 : slot * 8 + 8].any()
        machine.frames.put(np.concatenate([guest.table, guest.donated]))
    assert len(seen) == 4
    assert empty_header()._key.tobytes() != empty_header()._key.tobytes()


def test_the_ultravisor_object_leads_to_no_array(machine):
    """Design: the host has no way to the state and owner arrays, not even through the machine."""
    firmware = firmware_of(machine)
    secret = {id(firmware), id(firmware.state), id(firmware.owner), id(firmware.keys), id(firmware.storage)}
    seen, todo = set(), [machine]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        assert id(thing) not in secret
        inside = vars(thing) if hasattr(thing, "__dict__") else {}
        slots = [getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ())]
        todo += [part for part in [*inside.values(), *slots] if type(part).__module__.startswith("lazypv")]
        todo += [part for part in inside.values() if isinstance(part, np.ndarray)]


def test_scratch_of_all_threads_is_known_to_the_search_for_remains(machine):
    """Design, remanence: engine buffers are searched too."""
    guest = Guest(machine, np.arange(10, 14))
    guest.fill(guest.all_pages, 0x5EC2E7)
    machine.ultravisor.export_pages(guest.frames)
    machine.ultravisor.import_pages(guest.handle, guest.all_pages)
    (scratch,) = firmware_of(machine).scratch_pages()
    assert (0x5EC2E7).to_bytes(8, "little") * 4 not in scratch.tobytes()
