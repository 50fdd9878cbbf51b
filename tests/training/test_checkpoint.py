"""`last.ckpt` and `best.ckpt` are whole at any moment, and hold plain data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from impact_lightning.files import read_torch
from impact_lightning.training.checkpoint import AtomicCheckpointIO, plain
from impact_lightning.types import UserError

LIGHTNING = {"pytorch-lightning_version": "2.6"}


@dataclass(frozen=True)
class Settings:
    path: Path
    sizes: tuple[Path, ...]


def test_paths_and_data_classes_become_plain() -> None:
    value = {"a": Settings(Path("x"), (Path("y"),)), "b": [1, Path("z")], "c": None}
    assert plain(value) == {"a": {"path": "x", "sizes": ("y",)}, "b": [1, "z"], "c": None}


def test_what_is_written_is_read_without_running_code(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        **LIGHTNING,
        "state_dict": {"w": torch.ones(2)},
        "hyper_parameters": {"backbone": Settings(Path("x"), ())},
    }
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "last.ckpt")
    read = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert read["hyper_parameters"] == {"backbone": {"path": "x", "sizes": ()}}
    assert torch.equal(read["state_dict"]["w"], torch.ones(2))


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({**LIGHTNING, "state_dict": {"w": torch.ones(2)}}, path)

    def full(_: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"No space left.*former checkpoint is intact"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    monkeypatch.undo()
    assert torch.equal(read_torch(path)["state_dict"]["w"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_missing_file_and_a_file_without_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no `state_dict`"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "other.ckpt")


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({**LIGHTNING, "state_dict": {"w": torch.ones(1000)}}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum"):
        AtomicCheckpointIO().load_checkpoint(path)
