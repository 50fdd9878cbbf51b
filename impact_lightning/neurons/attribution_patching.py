"""Attribution patching: what replacing a unit by its mean would do to the logit of a class, to first order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.backbones import capture, patch
from impact_lightning.metrics.class_sums import plot_best
from impact_lightning.metrics.ratio import ratio
from impact_lightning.neurons.layers import Layer


class Attributions(NamedTuple):
    """What the images say of units, in float64 but for `images`."""

    scores: Tensor  # (C, K) mean over the images of a class; nan where it has none
    means: Tensor  # (channels,) mean activation over images and tokens
    images: Tensor  # (C,) int64, images of a class


class AttributionPatching(Metric):
    """Scores `s(u, c) = mean_i sum_t (mean a_u - a_u(i, t)) * d f_c(i) / d a_u(i, t)` over the images i of class c.

    One pass: with `G = sum g` and `H = sum a * g` it is `(mean a * G - H) / n_c`, and the mean need not be known
    before. Negative where a unit supports the class: without it the logit falls.

    Args:
        layers: The units.
        n_classes: Number of classes.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    gradients: Tensor
    products: Tensor
    activations: Tensor
    tokens: Tensor
    images: Tensor

    def __init__(self, layers: Sequence[Layer], n_classes: int) -> None:
        super().__init__()
        self.layers = layers
        n_channels, n_units = layers[-1].of_channels.stop, layers[-1].of_units.stop
        for name, shape in (
            ("gradients", (n_classes, n_channels)),
            ("products", (n_classes, n_units)),
            ("activations", (n_channels,)),
        ):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(n_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, activations: Mapping[str, Tensor], gradients: Mapping[str, Tensor], labels: Tensor) -> None:
        """Add a batch: by site, activations and the gradients of each image's own logit `(B, T, n * w)`."""
        for layer in self.layers:
            a, g = activations[layer.site], gradients[layer.site]
            products = torch.stack([(x * dx).sum(0) for x, dx in zip(a, g, strict=True)])  # in cache image by image
            products = products.unflatten(1, (layer.n_units, layer.width)).sum(2)  # (B, n * w) -> (B, n)
            self.gradients[:, layer.of_channels].index_add_(0, labels, g.sum(1).double())
            self.products[:, layer.of_units].index_add_(0, labels, products.double())
            self.activations[layer.of_channels] += a.sum((0, 1)).double()
        first = activations[self.layers[0].site]
        self.tokens += first.shape[0] * first.shape[1]
        self.images += torch.bincount(labels, minlength=len(self.images))

    def compute(self) -> Attributions:
        """Return scores and means."""
        means = ratio(self.activations, self.tokens)
        sums = torch.empty_like(self.products)
        for layer in self.layers:
            by_channel = self.gradients[:, layer.of_channels] * means[layer.of_channels]
            by_unit = by_channel.unflatten(1, (layer.n_units, layer.width)).sum(2)  # (C, n * w) -> (C, n)
            sums[:, layer.of_units] = by_unit - self.products[:, layer.of_units]
        return Attributions(ratio(sums, self.images[:, None]), means, self.images)

    def plot(self, val: Attributions | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the largest `abs(score)` of each unit over classes, in descending order."""
        scores = (self.compute() if val is None else val).scores
        return plot_best(scores.abs(), "largest attribution of a class", ax)


class Gradients:
    """Runs a model for its activations and for the gradients of each image's own logit by them.

    Args:
        model: A frozen model.
        sites: The sites that are read.
        first_block: The first block that has such a site: before it nothing is differentiated.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str], first_block: int) -> None:
        self.model = model
        self.sites = list(sites)
        self.start = f"blocks.{first_block}.resid_pre"

    @contextmanager
    def reading(self) -> Iterator["Gradients"]:
        """Hook the sites for as long as images are read."""
        with ExitStack() as stack:
            stack.enter_context(patch(self.model, {self.start: lambda x: x.detach().requires_grad_()}))
            self.captured = stack.enter_context(capture(self.model, self.sites, stop=False))
            yield self

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return logits `(B, C)`, and by site activations and gradients `(B, T, n * w)`."""
        with torch.inference_mode(mode=False), torch.enable_grad():
            logits: Tensor = self.model(images.clone() if images.is_inference() else images)
            own = logits.gather(1, labels.clone()[:, None]).sum()
            gradients = torch.autograd.grad(own, [self.captured[site] for site in self.sites])
        activations = {site: self.captured[site].detach() for site in self.sites}
        return logits.detach(), activations, dict(zip(self.sites, gradients, strict=True))
