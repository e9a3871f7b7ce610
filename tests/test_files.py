"""Files that take the place of others."""

from __future__ import annotations

import os

import pytest

from lazypv.__main__ import run
from lazypv.errors import UsageError
from lazypv.files import check_writable, replaced_atomically


@pytest.fixture
def pipe(tmp_path):
    """What is no file: a pipe, as /dev/stdout may be; a device is alike, and not ours to try it with."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.fixture(params=[False, True], ids=["itself", "by a link"])
def named(request, tmp_path, pipe):
    if not request.param:
        return pipe
    link = tmp_path / "link"
    link.symlink_to(pipe)
    return link


def test_what_is_no_file_is_not_replaced_by_one(named, pipe):
    """With /dev/null for a name, a superuser would take it away from the whole computer."""
    with pytest.raises(UsageError, match="is not a file"):
        check_writable(named)
    with pytest.raises(UsageError, match="is not a file"), replaced_atomically(named) as file:
        file.write(b"x")
    assert pipe.is_fifo()
    assert sorted(each.name for each in pipe.parent.iterdir()) == sorted({"pipe", named.name})


@pytest.mark.parametrize("option", ["--save", "--picture"])
def test_the_suite_says_so_before_it_measures(named, pipe, option, capsys):
    assert run(["bench", "startup.help", "--quick", option, str(named)]) == 2
    assert "is not a file" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(tmp_path):
    """The folder of the file itself has the temporary one: a link may lead to another disk."""
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    check_writable(link)
    with replaced_atomically(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert [each.name for each in target.parent.iterdir()] == ["file"]


def test_nothing_is_left_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with replaced_atomically(path) as file:
            file.write(b"half")
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        write_half()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
