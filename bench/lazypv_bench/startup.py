"""What a person waits for before anything happens."""

from __future__ import annotations

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from lazypv_bench.harness import Work, benchmark
from lazypv_bench.rig import Rig


def bare_python(rig: Rig, _subject: Work) -> Work:
    """The same interpreter with nothing to do."""
    return _process(rig, "-c", "pass")


@benchmark("startup.help", limit=bare_python, better="lower", bar=5, unit="ms", share=0)
def startup_help(rig: Rig) -> Work:
    """`lazypv --help`, from the start of the process to its end."""
    return _process(rig, "-m", "lazypv", "--help")


def _process(rig: Rig, *arguments: str) -> Work:
    """A process of this interpreter, with bytecode in a folder of its own that the first run, for warmth, fills.

    An installed package has its bytecode; a checkout, or an environment that forbids to write any, would have every
    run compile the sources anew.
    """
    folder = rig.closing.enter_context(TemporaryDirectory(prefix="lazypv-bench-"))
    environment = os.environ | {"PYTHONPYCACHEPREFIX": folder}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run() -> None:
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True, env=environment)

    return Work(run=run)
