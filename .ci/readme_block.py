"""Print the shell lines of the fenced block that follows ``<!-- ci: NAME -->`` in a Markdown file.

    python3 .ci/readme_block.py README.md "main job"
    python3 .ci/readme_block.py README.md tests --clone-address    where its `git clone` clones from; empty without one

A leading "$ " is taken off, lines of output (in a block with "$ ") are left out.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path


def block_after(text: str, name: str) -> list[str]:
    """Shell lines of the block."""
    found = re.search(rf"^<!-- ci: {re.escape(name)} -->\n+(```+)[^\n]*\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        sys.exit(f"there is no fenced block after <!-- ci: {name} -->")
    lines = found[2].splitlines()
    if not any(line.startswith("$ ") for line in lines):
        return lines
    commands = []
    continued = False
    for line in lines:
        if line.startswith("$ ") or continued:
            commands.append(line.removeprefix("$ "))
            continued = line.endswith("\\")
    return commands


def clone_address(lines: list[str]) -> str:
    """What the first `git clone` among `lines` clones from; empty if there is none."""
    for line in lines:
        found = re.match(r"\s*git clone\s+(?:-\S+\s+)*([^\s;&|]+)", line)
        if found:
            return found[1].strip("'\"")
    return ""


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--clone-address", action="store_true")
    options = parser.parse_args()
    lines = block_after(options.file.read_text(encoding="utf-8"), options.name)
    print(clone_address(lines) if options.clone_address else "\n".join(lines))


if __name__ == "__main__":
    main()
