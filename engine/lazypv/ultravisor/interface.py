"""The call interface: commands, return codes, condition codes, feature bits, under their interface names.

Source: semantics 3. Codes that no source states are the model's own and lie from 0x0f00 on.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

UVC_CC_OK: Final = 0
UVC_CC_ERROR: Final = 1
UVC_CC_BUSY: Final = 2
UVC_CC_PARTIAL: Final = 3


class UVC(IntEnum):
    """Ultravisor calls that the model executes, by command code."""

    INIT_UV = 0x000F
    CREATE_SEC_CONF = 0x0100
    DESTROY_SEC_CONF = 0x0101
    CREATE_SEC_CPU = 0x0120
    DESTROY_SEC_CPU = 0x0121
    CONV_TO_SEC_STOR = 0x0200
    CONV_FROM_SEC_STOR = 0x0201
    DESTR_SEC_STOR = 0x0202
    SET_SEC_CONF_PARAMS = 0x0300
    UNPACK_IMG = 0x0301
    VERIFY_IMG = 0x0302
    CPU_SET_STATE = 0x0330
    SET_UNSHARE_ALL = 0x0340
    PIN_PAGE_SHARED = 0x0341
    UNPIN_PAGE_SHARED = 0x0342
    SET_SHARED_ACCESS = 0x1000
    REMOVE_SHARED_ACCESS = 0x1001


UVC_RC_EXECUTED: Final = 0x0001
UVC_RC_INV_CMD: Final = 0x0002
UVC_RC_INV_STATE: Final = 0x0003
UVC_RC_INV_GHANDLE: Final = 0x0020
UVC_RC_INV_CHANDLE: Final = 0x0021
UVC_RC_NEED_DESTROY: Final = 0x8000

INIT_UV_RC_DONE_ALREADY: Final = 0x0101
INIT_UV_RC_STORAGE: Final = 0x0105
CREATE_SEC_CONF_RC_RANGE: Final = 0x0102
CREATE_SEC_CONF_RC_ASCE: Final = 0x0105
CREATE_SEC_CONF_RC_STORAGE: Final = 0x0108
CREATE_SEC_CPU_RC_NUMBER: Final = 0x0103
CREATE_SEC_CPU_RC_DEFINED: Final = 0x0104
CREATE_SEC_CPU_RC_STORAGE: Final = 0x0105
CONV_TO_RC_NOT_MAPPED: Final = 0x010A
SHARE_RC_INVALID_ADDRESS: Final = 0x0101

# The model's own: no public source states what the firmware answers here.
RC_CPUS_ALIVE: Final = 0x0F01
"""DESTR_SEC_STOR and DESTROY_SEC_CONF: the owner still has secure CPUs."""
RC_FOREIGN: Final = 0x0F02
"""CONV_TO_SEC_STOR: the page belongs to another configuration, or to none."""
RC_ALREADY_IN: Final = 0x0F03
"""CONV_TO_SEC_STOR: another page holds this guest page."""
RC_INTEGRITY: Final = 0x0F04
"""CONV_TO_SEC_STOR, UNPACK_IMG: the content is not what was exported or sealed."""
RC_NOT_SHARED: Final = 0x0F05
"""PIN_PAGE_SHARED, UNPIN_PAGE_SHARED: the page is not shared, or not pinned."""
RC_OUTSIDE: Final = 0x0F06
"""CONV_TO_SEC_STOR: outside the configuration's storage."""
RC_NOT_UNPACKABLE: Final = 0x0F07
"""UNPACK_IMG: no page of the image, or unpacked before."""
RC_DONATED: Final = 0x0F08
"""CONV_FROM_SEC_STOR: donated storage."""
RC_NO_SLOT: Final = 0x0F09
"""CREATE_SEC_CONF: as many configurations as the machine can have."""
RC_NOT_COMPLETE: Final = 0x0F0A
"""VERIFY_IMG: parts of the image were not unpacked; CPU_SET_STATE: the image was not verified."""

RC_DEFERRED: Final = 1
RRC_DEFERRED: Final = 42
"""What the host reports when work was put off (patch 08): rc 1, rrc 42; no call was made."""

BIT_UVC_FEAT_MISC: Final = 0
"""Importing a shared page of another configuration transfers its ownership (patch 11)."""

PGM_PRIVILEGED_OPERATION: Final = 0x02
PGM_PROTECTION: Final = 0x04
"""Of a guest's store here: a snapshot has still to save the page."""
PGM_ADDRESSING: Final = 0x05
PGM_SPECIFICATION: Final = 0x06
PGM_PAGE_TRANSLATION: Final = 0x11
PGM_SECURE_STORAGE_ACCESS: Final = 0x3D
PGM_NON_SECURE_STORAGE_ACCESS: Final = 0x3E
PGM_SECURE_STORAGE_VIOLATION: Final = 0x3F
ICPT_PV_NOTIFICATION: Final = 0x6C
"""Intercept 108."""
ICPT_VALIDITY: Final = 0x20
