"""Parameters are drawn anew as they were spread; a cascade changes exactly the parts that it names."""

import warnings

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from impact_lightning.attribution.gradients import GradientTimesInput
from impact_lightning.attribution.legrad import LeGrad
from impact_lightning.attribution.randomisation import cascade, randomise, randomised, rank_correlation
from impact_lightning.attribution.transformer_attribution import TransformerAttribution
from tests.attribution.curve_models import pictures, vit


def changed(model: nn.Module, other: nn.Module) -> set[str]:
    """Return the parameters in which two models differ."""
    theirs = dict(other.named_parameters())
    return {name for name, own in model.named_parameters() if not torch.equal(own, theirs[name])}


# --------------------------------------------------------------------------------------------------------- randomise


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    randomise(module, torch.Generator().manual_seed(seed))
    return module


def test_mean_and_deviation_are_kept() -> None:
    layer = nn.Linear(200, 300)
    layer.weight.data.normal_(mean=0.4, std=0.3)
    before = layer.weight.detach().clone()
    drawn(layer)
    assert layer.weight.mean().item() == pytest.approx(before.mean().item(), abs=0.3 / 60)  # five standard errors
    assert layer.weight.std().item() == pytest.approx(before.std().item(), rel=0.02)
    assert abs(torch.corrcoef(torch.stack([layer.weight.flatten(), before.flatten()]))[0, 1].item()) < 0.02


def test_zeros_stay_and_are_no_part_of_the_spread() -> None:
    layer = nn.Linear(100, 100)
    layer.weight.data.normal_(mean=2.0, std=0.1)
    kept = torch.rand(100, 100) < 0.2
    layer.weight.data *= kept
    drawn(layer)
    assert torch.equal(layer.weight != 0, kept)
    assert layer.weight[kept].mean().item() == pytest.approx(2.0, abs=0.02)
    assert layer.weight[kept].std().item() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_vector_that_was_never_trained_stays(value: float) -> None:
    layer = nn.LayerNorm(8)
    layer.weight.data.fill_(value)
    drawn(layer)
    assert layer.weight.tolist() == [value] * 8


def test_a_single_number_stays() -> None:
    module = nn.ParameterList([nn.Parameter(torch.tensor([3.0]))])
    drawn(module)
    assert module[0].tolist() == [3.0]


def test_the_seed_decides() -> None:
    first, again, other = (randomised(vit(), seed) for seed in (1, 1, 2))
    assert not changed(first, again)
    assert changed(first, other) == {name for name, _ in first.named_parameters()}


def test_a_randomised_model_is_a_copy() -> None:
    model, untouched = vit(), vit()
    found = randomised(model, 0)
    assert not changed(model, untouched)
    assert changed(found, model) == {name for name, _ in model.named_parameters()}
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())


# ----------------------------------------------------------------------------------------------------------- cascade


@pytest.mark.parametrize(
    ("depth", "pool", "lows"),
    [(4, "avg", [2, 1, 0]), (3, "avg", [2, 1, 0]), (2, "avg", [1, 0]), (1, "avg", [0]), (2, "map", [1, 0])],
)
def test_each_stage_differs_in_the_parts_that_it_names(depth: int, pool: str, lows: list[int]) -> None:
    model, untouched = (vit(depth=depth, global_pool=pool, class_token=False) for _ in range(2))
    below = ("blocks.", "patch_embed.", "pos_embed")
    head = {name for name, _ in model.named_parameters() if not name.startswith(below)}
    assert len(head) == {"avg": 4, "map": 4 + 13}[pool]  # map: q, kv, proj, fc1 and fc2, a norm and the latent
    stages = []
    for name, copied in cascade(model, 0):
        stages.append(name)
        low = depth if name == "head" else int(name.split()[1])
        blocks = {
            key for key, _ in model.named_parameters() if key.startswith("blocks.") and int(key.split(".")[1]) >= low
        }
        assert changed(copied, model) == head | blocks
    assert stages == ["head", *(f"blocks {low} and above" for low in lows)]
    assert not changed(model, untouched)


def test_the_seed_decides_a_cascade() -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        return [
            dict(copied.named_parameters())["blocks.1.attn.qkv.weight"].clone() for _, copied in cascade(vit(), seed)
        ]

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[-1], other[-1])


@pytest.mark.parametrize("method", [TransformerAttribution(), GradientTimesInput(), LeGrad()])
def test_gradients_flow_through_copies_that_are_made_in_inference_mode(method: GradientTimesInput) -> None:
    model, images, targets = vit(), pictures(), torch.tensor([0, 1, 2])
    wanted = [method(copied, images, targets) for _, copied in cascade(model, 0)]
    wanted.append(method(randomised(model, 0), images, targets))
    with torch.inference_mode():
        found = [method(copied, images + 0, targets + 0) for _, copied in cascade(model, 0)]
        found.append(method(randomised(model, 0), images + 0, targets + 0))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


# -------------------------------------------------------------------------------------------------- rank correlation


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_rank_correlation_is_that_of_scipy(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    a, b = (torch.randint(levels, (6, 3, 5), generator=generator).float() for _ in range(2))
    found = rank_correlation(a, b)
    assert found.dtype == torch.float64
    for i in range(6):
        assert found[i].item() == pytest.approx(spearmanr(a[i].flatten(), b[i].flatten()).statistic, abs=1e-12)


def test_rank_correlation_of_a_constant_map_is_undefined() -> None:
    maps = torch.rand(2, 3, 3)
    maps[1] = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rank_correlation(maps, torch.rand(2, 3, 3)).isnan().tolist() == [False, True]
    assert rank_correlation(maps[:1], -3 * maps[:1]).item() == pytest.approx(-1)
