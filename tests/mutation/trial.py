"""One mutant on trial: its own copy of the engine, a fresh process, a budget.

Nothing is ever written to the checkout, nor to the user's cache of compiled kernels: both are copied.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lazypv_kernels.compiled import cache_directory, source_key

from .mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
"""The checkout that this file is in."""
COPIED = (
    "kernels/lazypv_kernels", "tests/mutation/checks", "tests/ultravisor", "tests/host", "examples", "engine/lazypv",
)  # fmt: skip
"""All that a verdict depends on; the last of them is mutated."""
WALL_FACTOR = 3
"""A process that sleeps is given up after so many times the budget, which counts seconds of a core."""

COMPILING_RUNS = 4
"""How often the unchanged engine may run until it holds with nothing compiled; threads that compile get in each other's
way (CPython 3.11)."""
MOST_MEMORY = 8 << 30
"""Bytes of address space of a process; the checks need a tenth of it."""


class BaselineError(Exception):
    """The unchanged engine does not come through its own checks."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes
    ----------
    outcome : str
        ``survived``, ``violation`` (a check said so), ``exception``, ``crash`` or ``timeout``.
    check : str
        Which check it was; empty if it survived.
    seconds : float
        On the clock on the wall.
    """

    outcome: str
    check: str
    text: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Noticed, in whatever way."""
        return self.outcome != "survived"

    @property
    def is_certain(self) -> bool:
        """Noticed, and not because the computer had much else to do."""
        return self.killed and self.outcome != "timeout"


class Bench:
    """Where mutants are tried: a copy of engine, kernels and checks as they were when it was set up.

    Parameters
    ----------
    checkout : Path
        Where they are copied from.
    budget : int
        Seconds of a core that the checks of one mutant may take.
    """

    def __init__(self, checkout: Path, budget: int) -> None:
        self.budget = budget
        self._work = tempfile.TemporaryDirectory(prefix="lazypv-mutation-")
        self._folder = Path(self._work.name)
        for part in COPIED:
            source = (checkout if part in ("kernels/lazypv_kernels", "engine/lazypv") else ROOT) / part
            shutil.copytree(source, self._folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        if cache_directory().is_dir():
            shutil.copytree(cache_directory(), self._folder / "cache" / "kernels" / source_key())
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def package(self) -> Path:
        """The unchanged ``lazypv`` that mutants are made of."""
        return self._folder / "engine" / "lazypv"

    def sources(self) -> str:
        """A digest of everything that decides a verdict."""
        digest = hashlib.sha256(str(self.budget).encode())
        for path in sorted(path for part in COPIED for path in (self._folder / part).rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:24]

    def baseline(self) -> Verdict:
        """Try the unchanged engine; its kernels are compiled, if they have to be, before anything else is tried.

        Raises
        ------
        BaselineError
            It does not survive, or kernels are compiled even the last time.
        """
        for _ in range(COMPILING_RUNS):
            verdict, compiled = self._try(self.package.parent, budget=600, write_bytecode=True)
            if not verdict.killed and not compiled:
                return verdict
        if verdict.killed:
            raise BaselineError(f"the unchanged engine: {verdict.outcome} in {verdict.check}: {verdict.text}")
        raise BaselineError(f"{compiled} kernels were compiled although all of them should have been in the cache")

    def try_mutant(self, mutant: Mutant) -> Verdict:
        """Apply `mutant` to a copy and let the checks look at it."""
        with tempfile.TemporaryDirectory(prefix="mutant-", dir=self._folder) as folder:
            engine = Path(folder) / "engine"
            shutil.copytree(self.package.parent, engine)
            (engine / "lazypv" / mutant.key.module).write_text(mutant.source(self.package))
            return self._try(engine, budget=self.budget)[0]

    def close(self) -> None:
        """End what still runs, and forget all copies."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for process in running:
            _kill(process)
        self._work.cleanup()

    def _try(self, engine: Path, budget: int, write_bytecode: bool = False) -> tuple[Verdict, int]:
        """The verdict, and how many kernels were compiled meanwhile."""
        report = Path(tempfile.mkstemp(prefix="report-", dir=self._folder)[1])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(engine), str(self._folder / "kernels"), str(self._folder))),
            "PYTHONHASHSEED": "0",
            "LAZYPV_CACHE_DIR": str(self._folder / "cache"),
            "PYTHONDONTWRITEBYTECODE": "" if write_bytecode else "1",
        }
        command = [sys.executable, "-m", "tests.mutation.checks", str(report), str(engine)]
        began = time.monotonic()
        with self._lock:
            if self._closed:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                command, cwd=self._folder, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self._running.add(process)
        try:
            resource.prlimit(process.pid, resource.RLIMIT_CPU, (budget, budget + 5))
            resource.prlimit(process.pid, resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
            status = process.wait(WALL_FACTOR * budget)
        except subprocess.TimeoutExpired:
            status = -signal.SIGXCPU
        finally:
            _kill(process)
            with self._lock:
                self._running.discard(process)
        seconds = time.monotonic() - began
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        report.unlink()
        return _verdict(status, lines, seconds), int(lines[-1].get("compiled", 0)) if lines else 0


def _verdict(status: int, lines: list[dict[str, object]], seconds: float) -> Verdict:
    """What the process said last, or what it died of."""
    last = lines[-1] if lines else {}
    check = str(last.get("check", "start"))
    if "outcome" in last:
        return Verdict(str(last["outcome"]), check, str(last["text"]), seconds)
    if status == -signal.SIGXCPU:
        return Verdict("timeout", check, "over the budget", seconds)
    return Verdict("crash", check, f"the process ended with status {status}", seconds)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here, and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Kept:
    """Verdicts in a file, one line each, so that a run that was interrupted goes on where it was."""

    def __init__(self, path: Path | None, sources: str) -> None:
        self._path = path
        self._sources = sources
        self._lock = threading.Lock()
        self.verdicts: dict[str, Verdict] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                found = json.loads(line)
                if found["sources"] == sources:
                    self.verdicts[found["mutant"]] = Verdict(**found["verdict"])

    def add(self, mutant: Mutant, verdict: Verdict) -> None:
        """Write one down."""
        with self._lock:
            self.verdicts[str(mutant.key)] = verdict
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(
                        json.dumps({"sources": self._sources, "mutant": str(mutant.key), "verdict": asdict(verdict)})
                        + "\n"
                    )
