"""``python -m lazypv.explain DIRECTORY``: write the pages of the documentation that are made from the entries."""

from __future__ import annotations

import argparse
from pathlib import Path

from lazypv.explain.rendering import PAGES


def main() -> None:
    """Write each page into the folder that was named."""
    parser = argparse.ArgumentParser(prog="python -m lazypv.explain", description=__doc__)
    parser.add_argument("directory", type=Path, help="folder of the documentation, such as docs")
    directory = parser.parse_args().directory
    for name, page in PAGES.items():
        (directory / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
