"""A file is the old one or the new one, never a half."""

import os
from pathlib import Path

import pytest

from impact_lightning.files import atomic_write, link_or_copy


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_folders_are_made_and_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in (b"one", b"two"):
        with atomic_write(path) as file:
            file.write(text)
        assert path.read_bytes() == text


def test_a_link_keeps_the_bytes_when_the_source_is_replaced(tmp_path: Path) -> None:
    source, target = tmp_path / "last", tmp_path / "best"
    for text in (b"one", b"two"):
        with atomic_write(source) as file:
            file.write(text)
        link_or_copy(source, target)
        link_or_copy(source, target)  # the same file twice
        with atomic_write(source) as file:
            file.write(b"later")
        assert target.read_bytes() == text
    assert sorted(os.listdir(tmp_path)) == ["best", "last"]


def test_without_hard_links_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "last").write_bytes(b"one")
    link_or_copy(tmp_path / "last", tmp_path / "best")
    assert (tmp_path / "best").read_bytes() == b"one"


def test_a_full_disk_is_said_of_the_file(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "results.json"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*results\.json"):
        write()
    assert not list(tmp_path.iterdir())
