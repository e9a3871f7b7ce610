"""The Ultravisor as a dictionary: page states, records, owners, CPUs, in the words of semantics 2.

No arrays, no claims, one page at a time, one call after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lazypv.ultravisor.interface import (
    CONV_TO_RC_NOT_MAPPED,
    CREATE_SEC_CONF_RC_ASCE,
    CREATE_SEC_CONF_RC_STORAGE,
    CREATE_SEC_CPU_RC_DEFINED,
    CREATE_SEC_CPU_RC_NUMBER,
    CREATE_SEC_CPU_RC_STORAGE,
    ICPT_PV_NOTIFICATION,
    ICPT_VALIDITY,
    PGM_NON_SECURE_STORAGE_ACCESS,
    PGM_PAGE_TRANSLATION,
    PGM_SECURE_STORAGE_ACCESS,
    PGM_SECURE_STORAGE_VIOLATION,
    RC_ALREADY_IN,
    RC_CPUS_ALIVE,
    RC_DONATED,
    RC_FOREIGN,
    RC_INTEGRITY,
    RC_NOT_COMPLETE,
    RC_NOT_SHARED,
    RC_OUTSIDE,
    UVC_RC_EXECUTED,
    UVC_RC_INV_CHANDLE,
    UVC_RC_INV_GHANDLE,
    UVC_RC_INV_STATE,
)

DONE = UVC_RC_EXECUTED
ZERO = bytes(4096)


@dataclass
class Frame:
    """One page of absolute storage: `state` as in semantics 2.1, and to whom it belongs at which guest page."""

    state: str = "NS"
    owner: int | None = None
    page: int | None = None
    content: bytes = ZERO

    def release(self, content=None):
        self.state, self.owner, self.page = "NS", None, None
        self.content = self.content if content is None else content

    @property
    def guest_page(self):
        return self.state in ("SEC", "SHR", "PSH")


@dataclass
class Record:
    """Where a guest page is: never, in, out, out-shared; sealed and plain content while it is out."""

    where: str = "never"
    sealed: bytes = b""
    plain: bytes = b""


@dataclass
class Configuration:
    space: int
    pages: int
    donated: list[int]
    table: list[int]
    records: dict[int, Record] = field(default_factory=dict)
    cpus: dict[int, int] = field(default_factory=dict)
    verified: bool = False

    def record(self, page):
        return self.records.setdefault(page, Record())


@dataclass
class Cpu:
    configuration: int
    frames: list[int]
    operating: bool = False


class Model:
    """Frames, configurations and CPUs by handle; `spaces` are the address translations, page to frame."""

    def __init__(self, frames, uv_frames, spaces, misc):
        self.frames = [Frame() for _ in range(frames)]
        for frame in uv_frames:
            self.frames[frame].state = "DON_UV"
        self.spaces = spaces
        self.misc = misc
        self.configurations: dict[int, Configuration] = {}
        self.cpus: dict[int, Cpu] = {}

    def states(self):
        """Of all frames: what each is, to whom it belongs, and as which page."""
        return [(frame.state, frame.owner, frame.page) for frame in self.frames]

    # --- configurations and CPUs ---------------------------------------------------------------------------------

    def _free(self, frames):
        return len(set(frames)) == len(frames) and all(self.frames[frame].state == "NS" for frame in frames)

    def create_conf(self, space, pages, donated, table):
        """The code; :meth:`enter` follows with the handle."""
        if not self._free(table):
            return CREATE_SEC_CONF_RC_ASCE
        if not self._free(donated) or set(donated) & set(table):
            return CREATE_SEC_CONF_RC_STORAGE
        return DONE

    def enter(self, handle, space, pages, donated, table):
        self.configurations[handle] = Configuration(space, pages, donated, table)
        for frame in donated:
            self.frames[frame].state, self.frames[frame].owner = "DON_CONF", handle
        for frame in table:
            self.frames[frame].state, self.frames[frame].owner = "ASCE", handle

    def destroy_conf(self, handle):
        """(code, guest pages cleaned)"""
        if handle not in self.configurations:
            return UVC_RC_INV_GHANDLE, 0
        if self.configurations[handle].cpus:
            return RC_CPUS_ALIVE, 0
        cleaned = 0
        for frame in self.frames:
            if frame.owner == handle:
                cleaned += frame.guest_page
                frame.release(frame.content if frame.state == "ASCE" else ZERO)
        del self.configurations[handle]
        return DONE, cleaned

    def create_cpu(self, handle, number, frames):
        if handle not in self.configurations:
            return UVC_RC_INV_GHANDLE
        if not 0 <= number <= 247:
            return CREATE_SEC_CPU_RC_NUMBER
        if number in self.configurations[handle].cpus.values():
            return CREATE_SEC_CPU_RC_DEFINED
        return DONE if self._free(frames) else CREATE_SEC_CPU_RC_STORAGE

    def enter_cpu(self, cpu_handle, handle, number, frames):
        self.cpus[cpu_handle] = Cpu(handle, frames)
        self.configurations[handle].cpus[cpu_handle] = number
        for frame in frames:
            self.frames[frame].state, self.frames[frame].owner = "DON_CPU", handle

    def destroy_cpu(self, cpu_handle):
        cpu = self.cpus.pop(cpu_handle, None)
        if cpu is None:
            return UVC_RC_INV_CHANDLE
        del self.configurations[cpu.configuration].cpus[cpu_handle]
        for frame in cpu.frames:
            self.frames[frame].release(ZERO)
        return DONE

    def verify(self, handle):
        if handle not in self.configurations:
            return UVC_RC_INV_GHANDLE
        self.configurations[handle].verified = True
        return DONE

    def set_state(self, cpu_handle, operating):
        if cpu_handle not in self.cpus:
            return UVC_RC_INV_CHANDLE
        cpu = self.cpus[cpu_handle]
        if operating and not self.configurations[cpu.configuration].verified:
            return RC_NOT_COMPLETE
        cpu.operating = operating
        return DONE

    def unshare_all(self, handle):
        """(code, pages)"""
        if handle not in self.configurations:
            return UVC_RC_INV_GHANDLE, 0
        if any(self.cpus[cpu].operating for cpu in self.configurations[handle].cpus):
            return UVC_RC_INV_STATE, 0
        shared = [frame for frame in self.frames if frame.owner == handle and frame.state in ("SHR", "PSH")]
        for frame in shared:
            frame.state = "SEC"
        return DONE, len(shared)

    # --- pages ---------------------------------------------------------------------------------------------------

    def import_page(self, handle, page):
        if handle not in self.configurations:
            return UVC_RC_INV_GHANDLE
        configuration = self.configurations[handle]
        space = self.spaces[configuration.space]
        if not 0 <= page < min(configuration.pages, len(space)):
            return RC_OUTSIDE
        if space[page] is None:
            return CONV_TO_RC_NOT_MAPPED
        frame, record = self.frames[space[page]], configuration.record(page)
        if (frame.state, frame.owner, frame.page) == ("SEC", handle, page):
            return DONE
        taken_over = self.misc and frame.state == "SHR" and frame.owner != handle
        if frame.state != "NS" and not taken_over:
            return RC_FOREIGN
        if record.where == "in":
            return RC_ALREADY_IN
        if record.where == "out" and frame.content != record.sealed:
            return RC_INTEGRITY
        if taken_over:
            self.configurations[frame.owner].record(frame.page).where = "out-shared"
        frame.owner, frame.page = handle, page
        frame.state = "SHR" if record.where == "out-shared" else "SEC"
        if record.where == "never":
            frame.content = ZERO
        elif record.where == "out":
            frame.content = record.plain
        record.where = "in"
        return DONE

    def export_page(self, number, content_now):
        """`content_now` tells what the frame holds after the call: ciphertext cannot be foreseen."""
        frame = self.frames[number]
        if frame.state.startswith("DON"):
            return RC_DONATED
        if frame.guest_page:
            record = self.configurations[frame.owner].record(frame.page)
            if frame.state == "SEC":
                record.where, record.plain, record.sealed = "out", frame.content, content_now(number)
                assert record.sealed != record.plain
                frame.release(record.sealed)
            else:
                record.where = "out-shared"
                frame.release()
        return DONE

    def destroy_page(self, number):
        frame = self.frames[number]
        if frame.state in ("NS", "ASCE"):
            return DONE
        if not frame.guest_page or self.configurations[frame.owner].cpus:
            return RC_CPUS_ALIVE
        frame.release(ZERO)
        return DONE

    def pin_page(self, number):
        frame = self.frames[number]
        if frame.state not in ("SHR", "PSH"):
            return RC_NOT_SHARED
        frame.state = "PSH"
        return DONE

    def unpin_page(self, handle, page):
        if handle not in self.configurations:
            return UVC_RC_INV_GHANDLE
        number = self._mapped(self.configurations[handle].space, page)
        if number is None:
            return CONV_TO_RC_NOT_MAPPED
        frame = self.frames[number]
        if (frame.state, frame.owner, frame.page) != ("PSH", handle, page):
            return RC_NOT_SHARED
        frame.state = "SEC"
        return DONE

    def share_page(self, handle, page, share):
        if handle not in self.configurations:
            return UVC_RC_INV_GHANDLE
        code = self.look(handle, self.configurations[handle].space, page)
        if code != DONE:
            return code
        frame = self.frames[self._mapped(self.configurations[handle].space, page)]
        if not share and frame.state == "PSH":
            return ICPT_PV_NOTIFICATION
        frame.state = {("SEC", True): "SHR", ("SHR", False): "SEC"}.get((frame.state, share), frame.state)
        return DONE

    # --- accesses ------------------------------------------------------------------------------------------------

    def _mapped(self, space, page):
        return self.spaces[space][page] if 0 <= page < len(self.spaces[space]) else None

    def host_may(self, number):
        """Semantics 7, first line of the decision table."""
        return self.frames[number].state in ("NS", "SHR", "PSH", "ASCE")

    def look(self, handle, space, page):
        """The code of an access of a guest; handle None is a normal guest."""
        number = self._mapped(space, page)
        if number is None:
            return PGM_PAGE_TRANSLATION
        frame = self.frames[number]
        if handle is None:
            return DONE if self.host_may(number) else PGM_SECURE_STORAGE_ACCESS
        if frame.guest_page and (frame.owner, frame.page) == (handle, page):
            return DONE
        if frame.state in ("NS", "ASCE") or (frame.state in ("SHR", "PSH") and frame.owner != handle):
            return PGM_NON_SECURE_STORAGE_ACCESS
        return PGM_SECURE_STORAGE_VIOLATION

    def store(self, handle, cpu_handle, space, page, content):
        """A guest overwrites a page; SIE is entered with these handles and the address space `space`."""
        if handle is not None:
            cpu = self.cpus.get(cpu_handle)
            alive = handle in self.configurations and cpu is not None
            if not alive or cpu.configuration != handle or not cpu.operating:
                return ICPT_VALIDITY
            if self.configurations[handle].space != space:
                return ICPT_VALIDITY
        code = self.look(handle, space, page)
        if code == DONE:
            self.frames[self._mapped(space, page)].content = content
        return code
