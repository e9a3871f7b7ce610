"""The interface's numbers: those that are published, and that the model's own are told apart from them.

Source: semantics 3; the table below is the published interface, written down a second time.
"""

from __future__ import annotations

from collections.abc import Iterator

from lazypv.host import gmap, set_aside
from lazypv.sizes import PAGE_SIZE
from lazypv.ultravisor import interface

from .check import Check, NoticedError

COMMANDS = {
    "INIT_UV": 0x000F, "CREATE_SEC_CONF": 0x0100, "DESTROY_SEC_CONF": 0x0101, "CREATE_SEC_CPU": 0x0120,
    "DESTROY_SEC_CPU": 0x0121, "CONV_TO_SEC_STOR": 0x0200, "CONV_FROM_SEC_STOR": 0x0201, "DESTR_SEC_STOR": 0x0202,
    "SET_SEC_CONF_PARAMS": 0x0300, "UNPACK_IMG": 0x0301, "VERIFY_IMG": 0x0302, "CPU_SET_STATE": 0x0330,
    "SET_UNSHARE_ALL": 0x0340, "PIN_PAGE_SHARED": 0x0341, "UNPIN_PAGE_SHARED": 0x0342, "SET_SHARED_ACCESS": 0x1000,
    "REMOVE_SHARED_ACCESS": 0x1001,
}  # fmt: skip
CODES = {
    "UVC_CC_OK": 0, "UVC_CC_ERROR": 1, "UVC_CC_BUSY": 2, "UVC_CC_PARTIAL": 3, "UVC_RC_EXECUTED": 1,
    "UVC_RC_INV_STATE": 3, "UVC_RC_INV_GHANDLE": 0x20, "UVC_RC_INV_CHANDLE": 0x21, "UVC_RC_NEED_DESTROY": 0x8000,
    "INIT_UV_RC_DONE_ALREADY": 0x101, "INIT_UV_RC_STORAGE": 0x105, "CREATE_SEC_CONF_RC_ASCE": 0x105,
    "CREATE_SEC_CONF_RC_STORAGE": 0x108, "CREATE_SEC_CPU_RC_NUMBER": 0x103, "CREATE_SEC_CPU_RC_DEFINED": 0x104,
    "CREATE_SEC_CPU_RC_STORAGE": 0x105, "CONV_TO_RC_NOT_MAPPED": 0x10A, "RC_DEFERRED": 1, "RRC_DEFERRED": 42,
    "BIT_UVC_FEAT_MISC": 0, "PGM_ADDRESSING": 0x05, "PGM_PAGE_TRANSLATION": 0x11, "PGM_SECURE_STORAGE_ACCESS": 0x3D,
    "PGM_NON_SECURE_STORAGE_ACCESS": 0x3E, "PGM_SECURE_STORAGE_VIOLATION": 0x3F, "ICPT_PV_NOTIFICATION": 108,
    "ICPT_VALIDITY": 0x20,
}  # fmt: skip
TABLES = {
    "ASCE_ORIGIN": 0xFFFFFFFFFFFFF000, "ASCE_PRIVATE_SPACE": 0x100, "ASCE_TYPE": 0x0C, "ASCE_TYPE_REGION3": 0x04,
    "ASCE_TYPE_SEGMENT": 0, "CRST_ALLOC_PAGES": 4,
}  # fmt: skip
"""Of the architecture's address space control element, and of Linux."""
OWN = range(0x0F00, 0x1000)
"""Where codes lie that no source states."""


def checks() -> Iterator[Check]:
    """Both."""
    yield Check("codes are the published ones", _published)
    yield Check("codes of the model's own are told apart", _own)


def _published() -> None:
    commands = {command.name: int(command) for command in interface.UVC}
    wrong = {name for name in COMMANDS if commands.get(name) != COMMANDS[name]}
    wrong |= {name for name, code in CODES.items() if getattr(interface, name, None) != code}
    wrong |= {name for name, code in TABLES.items() if getattr(gmap, name, None) != code}
    if set_aside.PV_MAX_LAZY_COUNT != (PAGE_SIZE - 24) // 8:
        wrong.add("PV_MAX_LAZY_COUNT")
    if wrong:
        raise NoticedError(f"not as published: {', '.join(sorted(wrong))}")


def _own() -> None:
    codes = {name: code for name, code in vars(interface).items() if name.startswith("RC_") and name not in CODES}
    strays = {name for name, code in codes.items() if code not in OWN}
    if strays or len(set(codes.values())) != len(codes):
        raise NoticedError(f"the model's own codes collide, or lie outside their range: {codes}")
