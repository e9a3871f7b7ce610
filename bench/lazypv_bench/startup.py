"""What a person waits for before anything happens."""

from __future__ import annotations

import subprocess
import sys

from lazypv_bench.harness import Work, benchmark
from lazypv_bench.rig import Rig


def bare_python(_rig: Rig, _subject: Work) -> Work:
    """The same interpreter with nothing to do."""
    return _process("-c", "pass")


@benchmark("startup.help", limit=bare_python, better="lower", bar=5, unit="ms", share=0)
def startup_help(_rig: Rig) -> Work:
    """`lazypv --help`, from the start of the process to its end."""
    return _process("-m", "lazypv", "--help")


def _process(*arguments: str) -> Work:
    def run() -> None:
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)

    return Work(run=run)
