"""What has to hold, looked at with everything in view: the only room that opens firmware's vault from above.

Only scenario, report and command line import it; no text and no handler asks it anything.
"""

from lazypv.invariants.accounts import ACCOUNTS_INVARIANT, Balance, LastInstruction, OldRun
from lazypv.invariants.frames import check_frames
from lazypv.invariants.remains import Remains, search_remains
from lazypv.invariants.structures import check_structures, check_wound_up
from lazypv.invariants.throughout import Throughout
from lazypv.invariants.violation import Violation

__all__ = [
    "ACCOUNTS_INVARIANT",
    "Balance",
    "LastInstruction",
    "OldRun",
    "Remains",
    "Throughout",
    "Violation",
    "check_frames",
    "check_structures",
    "check_wound_up",
    "search_remains",
]
