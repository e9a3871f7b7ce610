"""The README's library example is a program that runs."""

from __future__ import annotations

import re
import subprocess
import sys


def test_the_library_example_of_the_readme_runs(request):
    """As a newcomer would type it, in the checkout."""
    root = request.config.rootpath
    examples = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    (example,) = (each for each in examples if each.startswith("import lazypv\n"))
    done = subprocess.run([sys.executable, "-c", example], cwd=root, capture_output=True, text=True, check=True)
    refused, report, end = done.stdout.splitlines()
    assert refused.startswith("program interruption 0x3d at absolute address")
    assert "rrc=42" in report
    assert end.endswith(" []")
