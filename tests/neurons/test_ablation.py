"""What units are worth is measured by setting them to their means."""

import torch
from torch import nn

from impact_lightning.backbones import capture, patch
from impact_lightning.neurons.ablation import AblationImpact, ablated_logits, top_units
from impact_lightning.neurons.layers import Layer, find_layers
from tests.neurons.tiny import images, vit

NEURONS = Layer(block=0, kind="neuron", n_units=4, width=1, units=2, channels=8)


def test_the_top_units_have_the_largest_absolute_scores() -> None:
    nan = torch.nan
    scores = torch.tensor([[9, 9, 1, -3, 2, 2], [9, 9, nan, nan, nan, nan]], dtype=torch.float64)
    assert top_units(scores, NEURONS, 3).tolist() == [[1, 2, 3], [-1, -1, -1]]


@torch.no_grad()
def test_each_image_has_units_of_its_own() -> None:
    model, (pictures, _) = vit(), images(3)
    for layer in find_layers(model, None, ["neuron", "head"]):
        site, start = layer.site, f"blocks.{layer.block}.resid_pre"
        with capture(model, [site, start], stop=False) as captured:
            clean = model(pictures)
            stream, means = captured[start].clone(), captured[site].mean((0, 1))
        units = torch.tensor([[0, 1], [1, -1], [-1, -1]])
        found = ablated_logits(model, layer, stream, units, means)
        for i, row in enumerate(units.tolist()):
            channels = [u * layer.width + c for u in row if u >= 0 for c in range(layer.width)]
            expected = _with_means(model, pictures[i], site, channels, means)
            torch.testing.assert_close(found[i], expected)
        assert torch.equal(found[2], clean[2])  # no unit, no impact


def _with_means(
    model: nn.Module, picture: torch.Tensor, site: str, channels: list[int], means: torch.Tensor
) -> torch.Tensor:
    def edit(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[..., channels] = means[channels]
        return x

    with patch(model, {site: edit}):
        logits: torch.Tensor = model(picture[None])[0]
    return logits


def test_the_impact_is_the_fall_of_the_own_logit_in_units_of_all_logits() -> None:
    clean = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    metric = AblationImpact([NEURONS, NEURONS], n_classes=3)
    metric.update(clean, [torch.tensor([[1.0, 4.0], [0.0, 1.0]]), clean], torch.tensor([0, 1]))
    impact = metric.compute()
    torch.testing.assert_close(impact[:2], torch.tensor([[0.4, 0.0], [0.5, 0.0]], dtype=torch.float64))
    assert impact[2].isnan().all()
