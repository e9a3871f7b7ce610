"""Which cipher a machine has, and what it says where there is none worth having."""

from __future__ import annotations

import mmap
import warnings

import numpy as np
import pytest

from lazypv.errors import CipherError, SlowCipherWarning
from lazypv.hardware import Machine
from lazypv.scenario import Host
from lazypv.ultravisor import sealing, vault
from lazypv_kernels import ciphers

SIZE = 1024 * 4096


def test_a_cipher_that_there_is_not_is_refused():
    with pytest.raises(CipherError, match="'rot13' is not a cipher: choose one of aegis256, aes256gcm"):
        Machine(SIZE, cipher="rot13")


def test_without_aes_instructions_there_is_no_gcm(monkeypatch):
    monkeypatch.setattr(sealing, "HAS_AES256GCM", False)
    with pytest.raises(CipherError, match="choose aegis256"):
        Machine(SIZE, cipher="aes256gcm")


def test_without_aes_instructions_people_are_warned_if_there_is_anything_to_seal(monkeypatch):
    monkeypatch.setattr(ciphers, "HAS_AES", False)
    with pytest.warns(SlowCipherWarning, match="no AES instructions") as said:
        Machine(SIZE).close()
    assert said[0].filename == __file__
    with pytest.warns(SlowCipherWarning) as said:
        Machine.attach(mmap.mmap(-1, SIZE)).close()
    assert said[0].filename == __file__, "the line that makes it is to blame"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Machine(SIZE, contents=False).close()


def test_with_aes_instructions_nobody_is_warned():
    if not ciphers.HAS_AES:
        pytest.skip("this CPU has no AES instructions")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Machine(SIZE).close()


@pytest.mark.parametrize("name", ciphers.CIPHERS)
def test_what_goes_out_comes_in_again_under_either_cipher(name):
    """Through the Ultravisor's own door, on whole frames of a machine."""
    if name == "aes256gcm" and not ciphers.HAS_AES256GCM:
        pytest.skip("libsodium has no AES-256-GCM on this CPU")
    machine = Machine("96MiB", cipher=name)
    host = Host(machine)
    vm = host.create_vm("8MiB", vcpus=1)
    vm.protect()
    vm.populate()
    frames = vm.kernel_vm.gmap.pte.frames()
    contents = vault.firmware_of(machine.ultravisor).storage.contents
    plain = contents[frames].copy()
    assert machine.ultravisor.export_pages(frames).done == frames.size
    assert (contents[frames] != plain).any(axis=1).all()
    handle = vm.kernel_vm.kvm.pv.handle
    assert machine.ultravisor.import_pages(handle, np.arange(frames.size)).done == frames.size
    np.testing.assert_array_equal(contents[frames], plain)
    host.close()
    machine.close()
