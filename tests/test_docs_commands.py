"""Commands in the documentation do what it says: each ```console block is run with the installed `lazypv`.

Lines that begin with "$ " are commands; a block is one shell in a directory of its own, so later lines see files and
`$?` of earlier ones. The directory is empty but for `tests/data` and `examples`, which the pages use. Each command has
to end with status 0. Comments above a block say otherwise:

    <!-- exits: 2 -->       its last command ends with this status
    <!-- output -->         what stands below each command is its whole output, "..." for any part left out;
                            spaces and line breaks do not matter
    <!-- not run: why -->   only shown
    <!-- ci: ... -->        run by .ci/run
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n+)*)^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- ([\w ]+?)(?:: (.*?))? -->")
END_OF_OUTPUT = "\x1e"
SECONDS = 240


@dataclass(frozen=True)
class Example:
    """A console block: commands, what stands below each, and what the comments above say."""

    where: str
    commands: tuple[str, ...]
    shown: tuple[str, ...]
    status: int = 0
    whole_output: bool = False


def examples_in(text, name):
    """The blocks of a page that are to be run."""
    for block in BLOCK.finditer(text):
        notes = dict(COMMENT.findall(block[1]))
        if notes.keys() & {"not run", "ci"}:
            continue
        line = text.count("\n", 0, block.start(2)) + 1
        commands, shown = [], []
        continued = False
        for each in block[2].splitlines():
            if continued:
                commands[-1] += "\n" + each
                continued = each.endswith("\\")
            elif each.startswith("$ "):
                commands.append(each.removeprefix("$ "))
                shown.append("")
                continued = each.endswith("\\")
            elif commands:
                shown[-1] += each + "\n"
        yield Example(f"{name}:{line}", tuple(commands), tuple(shown), int(notes.get("exits") or 0), "output" in notes)


def run(example, directory):
    """(status, output) of each command; standard output and standard error in one."""
    script = "".join(
        f"{command}\n_status=$?; printf '{END_OF_OUTPUT}%s{END_OF_OUTPUT}' $_status; (exit $_status)\n"
        for command in example.commands
    )
    (directory / "tests").mkdir(exist_ok=True)
    (directory / "tests" / "data").symlink_to(REPOSITORY / "tests" / "data")
    (directory / "examples").symlink_to(REPOSITORY / "examples")
    scripts = sysconfig.get_path("scripts")
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=directory,
        env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}", "COLUMNS": "100", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    parts = done.stdout.split(END_OF_OUTPUT)
    return list(zip(map(int, parts[1::2]), parts[0::2], strict=False))


def fits(shown, output):
    """Whether `output` is what is shown, white space aside; "..." stands for any part left out."""
    pieces = [re.escape(" ".join(piece.split())).replace(r"\ ", r"\s+") for piece in shown.split("...")]
    return re.fullmatch(r"\s*" + r".*".join(rf"\s*{piece}\s*" for piece in pieces), output, re.DOTALL) is not None


def check(example, directory):
    results = run(example, directory)
    last = len(example.commands) - 1
    for at, (command, shown) in enumerate(zip(example.commands, example.shown, strict=True)):
        assert at < len(results), f"{example.where}: the shell ended before: $ {command}"
        status, output = results[at]
        wanted = example.status if at == last else 0
        assert status == wanted, f"{example.where}: status {status}, not {wanted}: $ {command}\n{output}"
        if example.whole_output:
            assert fits(shown, output), f"{example.where}: other output: $ {command}\n{output}"


PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
EXAMPLES = [
    example
    for page in PAGES
    for example in examples_in(page.read_text(encoding="utf-8"), page.relative_to(REPOSITORY).as_posix())
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.where)
def test_an_example_of_the_documentation_runs(example, tmp_path):
    check(example, tmp_path)


def test_there_are_examples():
    """A page that changes its form must not fall out of the tests unnoticed."""
    assert {example.where.partition(":")[0] for example in EXAMPLES} >= {
        "README.md",
        "docs/invariants.md",
        "docs/series-patches.md",
    }


# --- the reader of blocks itself ---------------------------------------------------------------------------------

PAGE = """
```console
$ echo one; (exit 0)
one
$ echo two \\
    three
two three
```

<!-- exits: 3 -->
<!-- output -->
```console
$ echo begin; echo middle;   echo end
begin
...
end
$ sh -c 'exit 3'
```

<!-- not run: takes a day -->
```console
$ rm everything
```

<!-- ci: tests -->

```console
$ rm everything
```

<!-- not run: a shell's own -->
```sh
rm everything
```

Text, and the comment of somebody else.

```console
$ true
```
"""


def test_blocks_are_read_with_their_comments():
    one, two, three = examples_in(PAGE, "page.md")
    assert one == Example("page.md:3", ("echo one; (exit 0)", "echo two \\\n    three"), ("one\n", "two three\n"))
    assert (two.status, two.whole_output, two.shown) == (3, True, ("begin\n...\nend\n", ""))
    assert (three.commands, three.status, three.whole_output) == (("true",), 0, False)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_blocks_are_run(number, tmp_path):
    check(list(examples_in(PAGE, "page.md"))[number], tmp_path)


@pytest.mark.parametrize(
    "example",
    [
        Example("wrong status", ("false",), ("",)),
        Example("wrong status before the last", ("false", "true"), ("", "")),
        Example("success where failure was announced", ("true",), ("",), status=2),
        Example("more output than shown", ("echo one; echo two",), ("one\n",), whole_output=True),
        Example("less output than shown", ("echo one",), ("one\n...\ntwo\n",), whole_output=True),
        Example("an early end", ("exit 0", "true"), ("", "")),
    ],
    ids=lambda example: example.where,
)
def test_what_is_wrong_is_found(example, tmp_path):
    with pytest.raises(AssertionError):
        check(example, tmp_path)


def test_later_commands_see_the_status_of_earlier_ones(tmp_path):
    check(Example("status", ("true", "echo $?"), ("", "0\n"), whole_output=True), tmp_path)
