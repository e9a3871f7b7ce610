"""The `lazypv` command: what a person typed, in; one exit status, out.

The first help is a stored text (`cli/help.txt`, which a test compares with what the parser says): importing the parser
takes six times as long as Python itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lazypv.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, LazyPVError


def main() -> None:
    """Run the command line and exit with its status; one clear line on stderr for whatever went wrong."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line; its exit status."""
    if arguments in ([], ["-h"], ["--help"]):
        print((Path(__file__).parent / "cli" / "help.txt").read_text(encoding="utf-8"), end="")
        return EXIT_OK if arguments else EXIT_BAD_INPUT
    from lazypv.cli import app

    try:
        status = app(arguments, prog_name="lazypv", standalone_mode=False)
    except LazyPVError as error:
        return _say(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _say("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say, and no second error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", EXIT_BAD_INPUT)
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is not None:
            return _say(message(), EXIT_BAD_INPUT)
        if type(error).__name__ == "Abort":
            return _say("interrupted", EXIT_INTERRUPTED)
        if os.environ.get("LAZYPV_TRACEBACK"):
            raise
        return _say(f"a bug of lazypv: {error!r} (LAZYPV_TRACEBACK=1 shows where)", EXIT_BUG)
    if status == EXIT_INTERRUPTED:
        return _say("interrupted", EXIT_INTERRUPTED)
    return status if isinstance(status, int) else EXIT_OK


def _say(line: str, status: int) -> int:
    print(f"lazypv: {' '.join(line.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
