"""Writing beside and renaming, and adding to the end."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stillroom.core import files


@pytest.mark.parametrize("space", [0, 3])
def test_a_record_that_finds_the_disk_full_takes_no_other_with_it(
    space: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "records", os.write
    files.append(path, b"first\n")
    spaces = iter([space] if space else [])

    def full(handle: int, data: bytes) -> int:
        if (bytes_left := next(spaces, 0)) == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, bytes(data)[:bytes_left])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        files.append(path, b"second\n")
    monkeypatch.undo()
    files.append(path, b"third\n")
    assert path.read_bytes() == b"first\nthird\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_record_is_whole_though_the_system_takes_it_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data)[:2]))
    for record in (b"first\n", b"second\n"):
        files.append(tmp_path / "records", record)
    assert (tmp_path / "records").read_bytes() == b"first\nsecond\n"


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = tmp_path / "folder", os.rename
    path.mkdir()
    (path / "a").write_text("old")

    def failing(source: Path, target: Path) -> None:
        if Path(target) == path and ".old." not in Path(source).name:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), files.replacing(path) as beside:
        beside.mkdir()
        (beside / "a").write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
    assert (path / "a").read_text() == "old"
