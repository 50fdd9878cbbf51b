"""Attribution patching in one pass is its definition."""

import numpy as np
import pytest
import torch

from impact_lightning.backbones import capture, patch
from impact_lightning.neurons.attribution_patching import AttributionPatching, Gradients
from impact_lightning.neurons.layers import Layer, find_layers
from impact_lightning.types import UserError
from tests.neurons.tiny import N_CLASSES, images, vit


def literal(layers: list[Layer], seed: int = 0) -> torch.Tensor:
    """Return scores by the definition: two passes, one image at a time."""
    model, (pictures, labels) = vit(seed=seed), images()
    sites = [layer.site for layer in layers]
    with torch.no_grad(), capture(model, sites) as captured:
        model(pictures)
        means = {site: captured[site].mean((0, 1)) for site in sites}
    scores = torch.zeros(N_CLASSES, layers[-1].of_units.stop, dtype=torch.float64)
    counts = torch.bincount(labels, minlength=N_CLASSES)
    for picture, label in zip(pictures, labels, strict=True):
        for layer in layers:
            with (
                patch(model, {"blocks.0.resid_pre": lambda x: x.requires_grad_()}),
                capture(model, layer.site, stop=False) as one,
            ):
                logit = model(picture[None])[0, label]
                (gradient,) = torch.autograd.grad(logit, one[layer.site])
            change = (means[layer.site] - one[layer.site].detach()) * gradient  # (1, T, n * w)
            by_unit = change.sum((0, 1)).unflatten(0, (layer.n_units, layer.width)).sum(1)
            scores[label, layer.of_units] += by_unit
    return scores / counts[:, None]


@pytest.mark.parametrize("blocks", [None, [1]])
def test_one_pass_is_the_definition(blocks: list[int] | None) -> None:
    model, (pictures, labels) = vit(), images()
    layers = find_layers(model, blocks, ["neuron", "head"])
    metric = AttributionPatching(layers, N_CLASSES)
    with Gradients(model, [layer.site for layer in layers], layers[0].block).reading() as run:
        for rows in torch.arange(12).split(5):
            _, activations, gradients = run(pictures[rows], labels[rows])
            metric.update(activations, gradients, labels[rows])
    found = metric.compute().scores
    expected = literal(layers)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-10, atol=1e-12)
    assert found[2].isnan().all()  # no image of this class


def test_gradients_come_out_of_inference_mode() -> None:
    model, (pictures, labels) = vit(), images()
    with (
        Gradients(model, ["blocks.1.mlp_neuron"], 1).reading() as run,
        torch.inference_mode(),
    ):
        logits, activations, gradients = run(pictures * 1.0, labels * 1)
    assert torch.equal(logits, model(pictures))
    assert not activations["blocks.1.mlp_neuron"].requires_grad
    assert gradients["blocks.1.mlp_neuron"].any()


def test_units_are_columns_in_the_order_of_execution() -> None:
    layers = find_layers(vit(), [-1, 0], ["neuron", "head"])
    assert [str(layer) for layer in layers] == [
        "blocks.0.heads",
        "blocks.0.neurons",
        "blocks.1.heads",
        "blocks.1.neurons",
    ]
    assert [(layer.units, layer.channels, layer.n_units, layer.width) for layer in layers] == [
        (0, 0, 2, 4),
        (2, 8, 32, 1),
        (34, 40, 2, 4),
        (36, 48, 32, 1),
    ]
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]])
    assert layers[0].sizes(x).tolist() == [[5.0, 2.0]]


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="no block 2 in a model of 2 blocks"):
        find_layers(vit(), [2], ["neuron"])


def test_it_plots_units_that_matter_first() -> None:
    import matplotlib.pyplot as plt

    model, (pictures, labels) = vit(), images()
    layers = find_layers(model, None, ["neuron"])
    metric = AttributionPatching(layers, N_CLASSES)
    with Gradients(model, [layer.site for layer in layers], 0).reading() as run:
        _, activations, gradients = run(pictures, labels)
    metric.update(activations, gradients, labels)
    figure, axes = plt.subplots()
    metric.plot(ax=axes)
    shown = np.asarray(axes.lines[0].get_ydata()).tolist()
    assert shown == sorted(metric.compute().scores[: N_CLASSES - 1].abs().amax(0).tolist(), reverse=True)
    plt.close(figure)
