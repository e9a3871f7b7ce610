"""No nonce is used twice under a key, whatever is restored twice, cloned or rolled back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

SCRIPT = Path(__file__).parent / "recorded_nonces.py"
STATE, LIVE, IMAGE, ROWS, BATCHES = 0, 1, 2, 3, 4


def test_no_key_and_nonce_meet_twice(tmp_path):
    """Every pair that the cipher was called with, recorded at its door, in kernels and outside."""
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout)
    calls = Counter(domain for *_, domain in record)
    assert calls[ROWS] > 2000
    assert calls[LIVE] > 150
    assert min(calls[IMAGE], calls[STATE], calls[BATCHES]) > 5
    sealed = [(key, nonce) for key, nonce, _, domain in record if domain != BATCHES]
    assert len(set(sealed)) == len(sealed)
    macs = {}
    for key, nonce, content, domain in record:
        if domain == BATCHES:  # verifying computes a MAC again: of the same bytes, or it is refused
            assert macs.setdefault((key, nonce), content) == content
    assert not set(sealed) & set(macs)
