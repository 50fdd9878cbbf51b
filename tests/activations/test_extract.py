"""Shards hold what a capture by hand sees, are the same on any number of ranks, and survive kills and full disks."""

import errno
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from impact_lightning.activations import CachedActivations, Tokens, extract, manifest
from impact_lightning.activations import shards as shards_module
from impact_lightning.activations.batch import site_statistics
from impact_lightning.activations.frozen import FrozenBackbone
from impact_lightning.activations.shards import Shards
from impact_lightning.backbones import Backbone, capture
from impact_lightning.data.images import ImageData, SplitNames
from impact_lightning.data.transforms import FlipCrop, Preprocess
from impact_lightning.types import Key, UserError
from tests.activations.tiny import LENGTH, N_IMAGES, SITES, make_backbone, make_data, make_shards


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), backbone)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def by_hand(backbone: Backbone, precision: str = "32-true") -> tuple[dict[str, Tensor], list[list[int]]]:
    """Return all activations of the training images, and their labels, with a plain loop."""
    data, model = make_data(), backbone.build().eval()
    found: dict[str, list[Tensor]] = {site: [] for site in SITES}
    index: list[list[int]] = []
    for first in (0, 4, 8, 12, 16, 20):  # forwards of 4 in shards of 8 do not cross a shard
        rows = range(first, min(first + 4, N_IMAGES))
        batch = data.on_after_batch_transfer(data.split("train").__getitems__([Key(0, row) for row in rows]).batch, 0)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
        with torch.no_grad(), autocast, capture(model, SITES) as seen:
            model(batch.images)
        for site in SITES:
            found[site].append(seen[site].flatten(0, 1).float())
        index += [[row, t, int(batch.labels[row - first])] for row in rows for t in range(LENGTH)]
    return {site: torch.cat(parts) for site, parts in found.items()}, index


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_equals_a_capture_by_hand(tmp_path: Path, backbone: Backbone, dtype: str, precision: str) -> None:
    shards = Shards(make_shards(tmp_path, backbone, dtype=dtype, precision=precision))
    expected, index = by_hand(backbone, precision)
    assert shards.rows("index", np.arange(len(shards))).tolist() == index
    for site in SITES:
        stored = shards.rows(site, np.arange(len(shards)))
        assert torch.equal(stored, expected[site].to(getattr(torch, dtype)))


def test_the_files_are_plain_arrays_of_whole_shards(complete: Path) -> None:
    shapes = [np.load(complete / SITES[1] / f"0000{number}.npy").shape for number in range(3)]
    assert shapes == [(8 * LENGTH, 24), (8 * LENGTH, 24), (6 * LENGTH, 24)]


def test_statistics_are_those_of_the_stored_rows(complete: Path) -> None:
    shards = Shards(complete)
    for site in SITES:
        rows = shards.rows(site, np.arange(len(shards))).double()
        known = shards.manifest.statistics[site]
        assert torch.allclose(known.mean.double(), rows.mean(0), atol=1e-7)  # stored in float32
        assert known.norm == pytest.approx(float((rows - rows.mean(0)).norm(dim=1).mean()))


def test_the_norm_is_the_mean_distance_from_the_mean() -> None:
    known = site_statistics(torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    assert (known.mean.tolist(), known.norm) == ([3.0, 4.0], 5.0)


def test_random_tokens_are_those_rows_of_all_tokens(tmp_path: Path, complete: Path, backbone: Backbone) -> None:
    tokens = Tokens("random", 2, seed=3)
    some, everything = Shards(make_shards(tmp_path, backbone, tokens=tokens)), Shards(complete)
    sequence = FrozenBackbone(backbone, SITES, tokens, "32-true").sequence
    rows = (np.arange(N_IMAGES)[:, None] * LENGTH + tokens.of(np.arange(N_IMAGES), sequence)).ravel()
    for name in ("index", *SITES):
        assert torch.equal(some.rows(name, np.arange(len(some))), everything.rows(name, rows))


def test_two_ranks_write_the_bytes_of_one(
    tmp_path: Path, complete: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (1, 0):
        for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        make_shards(tmp_path, backbone)
        assert (tmp_path / "manifest.json").exists() == (rank == 0)  # by the one that ends last
    assert files(tmp_path) == files(complete)


def test_worker_processes_change_no_byte(tmp_path: Path, complete: Path, backbone: Backbone) -> None:
    data = make_data()
    data.workers = 2
    extract(backbone=backbone, data=data, sites=SITES, out=tmp_path, batch_size=4, images_per_shard=8, device="cpu")
    assert files(tmp_path) == files(complete)


def test_a_second_call_computes_nothing(
    complete: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FrozenBackbone, "reading", None)
    make_shards(complete, backbone)
    assert "0 shards written, 3 kept" in capsys.readouterr().out


def test_a_damaged_shard_is_named_and_written_again(
    tmp_path: Path, complete: Path, backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(tmp_path, backbone)
    path = tmp_path / SITES[0] / "00001.npy"
    flip(path, -1)
    make_shards(tmp_path, backbone)
    assert f"{path} is damaged" in capsys.readouterr().out
    assert files(tmp_path) == files(complete)


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("writes", range(12))
def test_a_kill_at_any_file_changes_nothing(tmp_path: Path, complete: Path, backbone: Backbone, writes: int) -> None:
    def body() -> None:
        torch.set_num_threads(1)  # a forked process cannot use the parent's thread pool
        save, calls = manifest.save, []

        def killed(path: Path, write: Any) -> None:
            calls.append(path)
            if len(calls) <= writes:
                save(path, write)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(shards_module, "save", killed)  # noqa: B010  # in this process only
        make_shards(tmp_path, backbone)

    process = get_context("fork").Process(target=body)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(UserError, match=r"manifest\.json does not exist"):
        Shards(tmp_path)
    make_shards(tmp_path, backbone)
    assert {name: content for name, content in files(tmp_path).items() if not name.endswith(".tmp")} == files(complete)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, complete: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = np.save, []

    def full(file: Any, array: np.ndarray) -> None:
        calls.append(1)
        if len(calls) == 5:
            file.write(array.tobytes()[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(UserError, match=r"00001\.npy cannot be written \(No space left on device\).*free some"):
            make_shards(tmp_path, backbone)
    assert not list(tmp_path.rglob("*.tmp"))
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000.json"]
    make_shards(tmp_path, backbone)
    assert files(tmp_path) == files(complete)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), "float32", r"blocks\.1\.resid_post, image 0, token 0: an activation is nan"),
        (1e6, "float16", r"blocks\.1\.resid_post, image 0, token 0: .* beyond 65504.*set dtype to float32"),
    ],
)
def test_refuses_numbers_that_cannot_be_stored(
    tmp_path: Path, backbone: Backbone, value: float, dtype: str, message: str
) -> None:
    assert backbone.weights is not None
    weights = load_file(backbone.weights)
    weights["blocks.1.mlp.fc2.bias"][3] = value
    save_file(weights, tmp_path / "bad.safetensors")
    bad = Backbone(backbone.name, weights=tmp_path / "bad.safetensors", model_args=backbone.model_args, num_classes=5)
    with pytest.raises(UserError, match=message):
        make_shards(tmp_path / "out", bad, dtype=dtype)
    assert not list((tmp_path / "out").rglob("*.npy"))


@pytest.mark.parametrize("change", [{"tokens": Tokens("cls")}, {"sites": SITES[:1]}, {"dtype": "float32"}, {"seed": 1}])
def test_refuses_a_folder_of_another_configuration(
    complete: Path, backbone: Backbone, tmp_path: Path, change: dict[str, Any]
) -> None:
    if "seed" in change:
        backbone, change = make_backbone(tmp_path, seed=1), {}
    with pytest.raises(UserError, match=r"00000\.json was written with another configuration.*another folder"):
        make_shards(complete, backbone, **change)


@pytest.mark.parametrize("site", ["pooled", "logits", "blocks.0.attn_probs"])
def test_refuses_sites_without_tokens(tmp_path: Path, backbone: Backbone, site: str) -> None:
    with pytest.raises(UserError, match=site):
        make_shards(tmp_path, backbone, sites=[site])


def pictures(root: Path) -> Iterator[Path]:
    for number in range(6):
        path = root / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 40, 0, 0)).save(path)
        yield path


def image_data(root: Path, **settings: Any) -> ImageData:
    preprocess = Preprocess(size=16, crop_pct=1.0)
    return ImageData(str(root), splits=SplitNames(train=".", val="."), preprocess=preprocess, **settings)


def test_damaged_images_are_left_out(tmp_path: Path, backbone: Backbone) -> None:
    paths = list(pictures(tmp_path / "images"))
    paths[2].write_bytes(b"no picture")
    data = image_data(tmp_path / "images", on_error="skip")
    extract(
        backbone=backbone, data=data, sites=SITES, out=tmp_path / "out", batch_size=1, images_per_shard=1, device="cpu"
    )
    shards = Shards(tmp_path / "out")
    assert len(shards) == 5 * LENGTH
    notes = CachedActivations(tmp_path / "out").notes("train")
    assert notes == ("1 damaged samples left out when the activations were extracted",)
    assert sorted(set(shards.rows("index", np.arange(len(shards)))[:, 0].tolist())) == [
        0,
        2,
        3,
        4,
        5,
    ]  # sorted by class: 0 2 4


def test_refuses_augmented_images(tmp_path: Path, backbone: Backbone) -> None:
    list(pictures(tmp_path))
    with pytest.raises(UserError, match=r"data\.augment"):
        extract(backbone=backbone, data=image_data(tmp_path, augment=FlipCrop()), sites=SITES, out=tmp_path / "out")


def test_refuses_images_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"images are \(3, 16, 16\) and vit_tiny_patch16_224 takes \(3, 224, 224\)"):
        make_shards(tmp_path, Backbone("vit_tiny_patch16_224", model_args={"depth": 2}))


def test_the_hash_is_that_of_the_canonical_configuration(complete: Path) -> None:
    content = json.loads((complete / "manifest.json").read_text())
    text = json.dumps(content["configuration"], sort_keys=True, separators=(",", ":"))
    assert content["hash"] == hashlib.sha256(text.encode()).hexdigest()
    assert str(complete) not in text
