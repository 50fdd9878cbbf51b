"""Raw attention and rollout are the products of their definitions, with plain attention and whole matrices."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.attention_maps import RawAttention, Rollout
from impact_lightning.types import UserError
from tests.attribution import literal
from tests.attribution.literal import MODELS, build, random_images

TARGETS = torch.tensor([1, 0, 4])


@torch.no_grad()
def probabilities(model: VisionTransformer, image: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the attention of each block `(H, T, T)` and the row of the pooling `(T,)`."""
    tapes, tokens, _ = literal.forward(model, image)
    return [tape.probs for tape in tapes], literal.seed(model, tokens, 0)[1]


def rollout(model: VisionTransformer, image: Tensor, heads: str, discard: float) -> Tensor:
    probs, row = probabilities(model, image)
    product = torch.eye(len(row), dtype=row.dtype)
    for matrix in probs:
        fused = {"mean": matrix.mean(0), "max": matrix.max(0).values, "min": matrix.min(0).values}[heads]
        flat = fused.flatten().tolist()
        for entry in sorted(range(len(flat)), key=flat.__getitem__)[: int(discard * len(flat))]:
            flat[entry] = 0.0
        fused = torch.tensor(flat, dtype=row.dtype).reshape_as(fused) + torch.eye(len(row), dtype=row.dtype)
        product = (fused / fused.sum(1, keepdim=True)) @ product  # later blocks stand to the left
    return (row @ product)[model.num_prefix_tokens :]


@pytest.mark.parametrize("kind", MODELS)
def test_raw_attention_is_that_of_the_last_block(kind: str) -> None:
    model, images = build(kind), random_images()
    for found, image in zip(RawAttention()(model, images, TARGETS), images, strict=True):
        probs, row = probabilities(model, image)
        torch.testing.assert_close(found.flatten(), (row @ probs[-1].mean(0))[model.num_prefix_tokens :])


@pytest.mark.parametrize(("heads", "discard"), [("mean", 0.0), ("max", 0.0), ("min", 0.0), ("mean", 0.3), ("max", 0.9)])
@pytest.mark.parametrize("kind", ["plain", "average", "registers", "distilled", "qk_norm"])
def test_rollout_is_the_product_of_its_matrices(kind: str, heads: str, discard: float) -> None:
    model, images = build(kind), random_images()
    maps = Rollout(heads, discard)(model, images, TARGETS)  # type: ignore[arg-type]
    for found, image in zip(maps, images, strict=True):
        torch.testing.assert_close(found.flatten(), rollout(model, image, heads, discard))


def test_rollout_of_all_tokens_sums_to_one() -> None:
    model = build("average")
    torch.testing.assert_close(Rollout()(model, random_images(), TARGETS).sum((1, 2)), torch.ones(3).double())


def test_a_share_of_everything_is_refused() -> None:
    with pytest.raises(UserError, match=r"discard 1\.0"):
        Rollout(discard=1.0)
