"""Files are there whole or not at all, and what is no file is not replaced by one."""

import os
import stat
from pathlib import Path

import pytest

from export.files import move, write_atomically


def test_a_pipe_is_written_into_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, b"a report")
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert os.read(reader, 100) == b"a report"
    finally:
        os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "report.json", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")

    def refused(_: int) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(OSError, match="the disk is gone"):
        write_atomically(path, b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("report.json", b"old")]


def test_files_are_moved_with_the_index_last_and_what_it_does_not_name_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out, order = tmp_path / "work", tmp_path / "out", []
    for file in (work / "a.json", work / "b.onnx", out / "old.onnx", out / "a.json", out / "mine.txt"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(file.parent.name)
    replace = Path.replace

    def noted(path: Path, target: Path) -> Path:
        order.append(path.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noted)
    move(work, out, last="a.json", without=["old.onnx", "never.onnx"])
    assert order == ["b.onnx", "a.json"]
    assert {file.name: file.read_text() for file in out.iterdir()} == {
        "a.json": "work", "b.onnx": "work", "mine.txt": "out",
    }  # fmt: skip
