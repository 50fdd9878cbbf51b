"""Means are those of all images however they are read, and are refused where they are of something else."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from impact_lightning.backbones import capture
from impact_lightning.circuits.means import Baseline, Means, Origin, measure_means, read_means
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.types import UserError
from tests.circuits.test_fold import pictures, vit
from tests.distributed import run_distributed

ORIGIN = Origin(weights="w", nodes="all", data="d", transform='{"size": 16}', images=7, precision="32-true")
KINDS = ["plain", "registers, qk norm", "average pooling", "packed GLU"]


def measured(model: Any, batches: list[Tensor], origin: Origin = ORIGIN) -> Means:
    return measure_means(model, Nodes(model), batches, int(model.num_prefix_tokens), origin)


def everything(model: Any, images: Tensor) -> Tensor:
    """Return all nodes of all images one by one, `(N, T, n)`."""
    nodes, rows = Nodes(model), []
    for image in images:
        with capture(model, [str(site) for site in nodes.sites]) as captured:
            model(image[None])
        rows.append(torch.cat([captured[str(site)] for site in nodes.sites], 2))
    return torch.cat(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_constants_are_brute_force_means(kind: str) -> None:
    model, images = vit(kind), pictures(7)
    means, x, prefix = measured(model, [images]), everything(model, images), int(model.num_prefix_tokens)
    torch.testing.assert_close(means.constants("mean"), x.mean((0, 1))[None])
    torch.testing.assert_close(means.constants("mean_position"), x.mean(0))
    assert torch.equal(means.constants("zero"), torch.zeros_like(means.constants("mean")))
    parts = means.constants("mean_prefix_patch")
    assert parts.shape == x.shape[1:]
    for part, of in ((parts[:prefix], x[:, :prefix]), (parts[prefix:], x[:, prefix:])):
        if len(part):
            torch.testing.assert_close(part, of.mean((0, 1)).expand_as(part))
    torch.testing.assert_close(means.deviations(), x.flatten(0, 1).std(0, correction=0))
    assert means.images == 7


def test_patches_outweigh_the_class_token() -> None:
    model, images = vit(), pictures(5)
    means = measured(model, [images])
    position = means.constants("mean_position")  # (1 + 4, n)
    torch.testing.assert_close(means.constants("mean")[0], 0.2 * position[0] + 0.8 * position[1:].mean(0))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_batch_size_has_no_part(size: int) -> None:
    model, images = vit(), pictures(7)
    expected, found = measured(model, [images]), measured(model, list(images.split(size)))
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(found.squares, expected.squares, rtol=1e-13, atol=1e-13)
    assert found.images == expected.images == 7


def test_sums_are_in_float64_whatever_the_model_is_in() -> None:
    means = measured(vit().float(), [pictures(7).float()])
    assert means.sums.dtype == means.squares.dtype == torch.float64


def _of_rank(rank: int, n: int) -> tuple[Tensor, Tensor, int]:
    means = measured(vit(), list(pictures(n).split(2))[rank::2])
    return means.sums, means.squares, means.images


@pytest.mark.parametrize("n", [7, 8])
def test_two_ranks_have_the_means_of_one(n: int) -> None:
    expected = measured(vit(), list(pictures(n).split(2)))
    for sums, squares, images in run_distributed(partial(_plain, n=n)):
        torch.testing.assert_close(torch.tensor(sums, dtype=torch.float64), expected.sums, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(torch.tensor(squares, dtype=torch.float64), expected.squares, rtol=1e-12, atol=1e-12)
        assert images == n


def _plain(rank: int, n: int) -> tuple[Any, Any, int]:
    sums, squares, images = _of_rank(rank, n)
    return sums.tolist(), squares.tolist(), images


def test_a_rank_without_images_changes_nothing() -> None:
    expected = measured(vit(), [pictures(2)])
    for sums, _, images in run_distributed(partial(_plain, n=2), timeout=2):
        torch.testing.assert_close(torch.tensor(sums, dtype=torch.float64), expected.sums, rtol=1e-12, atol=1e-12)
        assert images == 2


def test_no_images_are_refused() -> None:
    with pytest.raises(UserError, match="none of the images can be read"):
        measured(vit(), [])


def test_activations_that_are_not_finite_are_refused() -> None:
    model = vit()
    model.blocks[0].mlp.fc1.bias.data[0] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        measured(model, [pictures()])


# ------------------------------------------------------------------------------------------------------------ files


@pytest.fixture
def means() -> Means:
    return measured(vit(), [pictures(7)])


def test_a_file_holds_every_bit(means: Means, tmp_path: Path) -> None:
    means.write(tmp_path / "means.safetensors")
    found = read_means(tmp_path / "means.safetensors", ORIGIN)
    assert torch.equal(found.sums, means.sums)
    assert torch.equal(found.squares, means.squares)
    assert (found.images, found.n_prefix, found.origin) == (means.images, means.n_prefix, means.origin)
    assert [path.name for path in tmp_path.iterdir()] == ["means.safetensors"]


def test_damaged_images_do_not_move_the_means_that_a_file_gives(tmp_path: Path) -> None:
    means = measured(vit(), [pictures(6)])  # of the seven that were asked for, one cannot be read
    means.write(tmp_path / "means.safetensors")
    found = read_means(tmp_path / "means.safetensors", ORIGIN)
    assert torch.equal(found.constants("mean"), means.constants("mean"))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("weights", "others"),
        ("nodes", "some"),
        ("data", "more"),
        ("transform", '{"size": 32}'),
        ("images", 8),
        ("precision", "bf16-mixed"),
    ],
)
def test_means_of_something_else_are_refused_and_the_part_is_named(
    part: str, value: Any, means: Means, tmp_path: Path
) -> None:
    path = tmp_path / "means.safetensors"
    means.write(path)
    with pytest.raises(UserError, match=f"{path} holds means of other {part}") as refusal:
        read_means(path, replace(ORIGIN, **{part: value}))
    assert str(value) in str(refusal.value)
    assert "remove it" in str(refusal.value)


def test_a_damaged_file_is_named(means: Means, tmp_path: Path) -> None:
    path = tmp_path / "means.safetensors"
    means.write(path)
    content = path.read_bytes()
    tensors = {"sums": means.sums, "squares": means.squares}
    for damaged in (content[:-10], content[:20], b"", b"no file of this kind"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path} holds no means, or is damaged"):
            read_means(path, ORIGIN)
    for about in ({}, {"means": "{"}, {"other": "{}"}):
        path.unlink()
        save_file(tensors, path, metadata=about)
        with pytest.raises(UserError, match=f"{path} holds no means, or is damaged"):
            read_means(path, ORIGIN)


@pytest.mark.parametrize("about", ["{}", "[]", "3"])
def test_metadata_of_another_form_is_named(about: str, means: Means, tmp_path: Path) -> None:
    path = tmp_path / "means.safetensors"
    save_file({"sums": means.sums, "squares": means.squares}, path, metadata={"means": json.dumps(json.loads(about))})
    with pytest.raises(UserError, match="holds no means, or is damaged"):
        read_means(path, ORIGIN)


@pytest.mark.parametrize("part", ["sums", "squares"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_means_that_are_not_finite_are_refused_and_the_file_is_named(
    part: str, value: float, means: Means, tmp_path: Path
) -> None:
    path = tmp_path / "means.safetensors"
    tensor = getattr(means, part).clone()
    tensor.view(-1)[3] = value
    replace(means, **{part: tensor}).write(path)
    with pytest.raises(UserError, match=f"{path} is damaged: its means have odd shapes or are not finite; remove it"):
        read_means(path, ORIGIN)


def test_means_of_odd_shapes_are_refused_and_the_file_is_named(means: Means, tmp_path: Path) -> None:
    path = tmp_path / "means.safetensors"
    for odd in (
        replace(means, squares=means.squares[:-1]),
        replace(means, sums=means.sums[:, :-1].contiguous()),
        replace(means, sums=means.sums[0]),
        replace(means, sums=means.sums[None]),
    ):
        odd.write(path)
        with pytest.raises(UserError, match=f"{path} is damaged"):
            read_means(path, ORIGIN)


# ---------------------------------------------------------------------------------------------------------- baseline


def test_a_baseline_hands_out_the_constants_of_every_hook() -> None:
    nodes = Nodes(vit())
    for table in (torch.randn(1, nodes.n), torch.randn(5, nodes.n), torch.randn(3, 5, nodes.n)):
        baseline = Baseline(table, nodes)
        three = table if table.ndim == 3 else table[None]
        for sites in nodes.hooked():
            assert torch.equal(baseline(sites), torch.cat([three[..., site.of] for site in sites], -1))
