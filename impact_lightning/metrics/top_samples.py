"""Top samples: the images that drive each latent most, and where in them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.types import UserError

ENTRIES_AT_A_TIME = 2**22  # each part raises the bar for the next: memory stays small, and little is left to sort


class Samples(NamedTuple):
    """The strongest images of each latent, in descending order; free places hold nan, -1 and -1."""

    value: Tensor  # (F, k) float64
    image: Tensor  # (F, k) int64
    token: Tensor  # (F, k) int64, the first token of the image that reaches the value


class TopSamples(Metric):
    """The k images with the largest activation of each latent, each with its strongest token.

    The same for any order, batch size and number of ranks: ties go to the lower image, then to the lower token. An
    image takes one place, also where its tokens come in several batches, or where it comes twice.

    Args:
        n_latents: Number F of latents.
        k: Images per latent.
        above: Activations that are not larger than this are no samples; 0 keeps what fired, `-inf` everything.

    Example:
        >>> metric = TopSamples(n_latents=1, k=2)
        >>> metric.update(torch.tensor([[1.0], [5.0], [2.0]]), images=torch.tensor([7, 8, 9]))
        >>> metric.compute().image.tolist(), metric.compute().value.tolist()
        ([[8, 9]], [[5.0, 2.0]])
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    best: Tensor

    def __init__(self, n_latents: int, k: int = 16, *, above: float = 0.0) -> None:
        super().__init__()
        self.above = above
        # value, image and token in one state, so that ranks merge them together; float64 holds integers up to 2**53
        free = torch.tensor([-torch.inf, -1.0, -1.0], dtype=torch.float64)
        self.add_state("best", free[:, None, None].repeat(1, n_latents, k), dist_reduce_fx=merge_samples)  # (3, F, k)

    def update(self, activations: Tensor, images: Tensor, tokens: Tensor | None = None) -> None:
        """Add activations.

        Args:
            activations: `(B, T, F)`, or of single tokens `(N, F)`.
            images: The image of each row, `(B,)` or `(N,)`, 0 or larger.
            tokens: Where each token is in its image, `(B, T)` or `(N,)`; None counts from 0.
        """
        if activations.numel() == 0:
            return
        if images.min() < 0:
            raise UserError(f"images: {int(images.min())} is no number of an image")
        if not activations.isfinite().all():
            raise UserError(f"activations of images {int(images.min())} to {int(images.max())} are not all finite")
        shape = activations.shape[:-1]  # (B, T) or (N,)
        if tokens is None:
            tokens = torch.arange(shape[1:].numel(), device=images.device)
        images = images.reshape(len(images), *[1] * (len(shape) - 1))  # (B,) -> (B, 1)
        n_rows = max(1, ENTRIES_AT_A_TIME // activations.shape[-1])
        rows = activations.flatten(0, -2).split(n_rows)  # (B, T, F) -> parts of (N, F)
        ids = torch.stack([images.expand(shape).flatten(), tokens.expand(shape).flatten()], 1).split(n_rows)  # (N, 2)
        for row, (image, token) in zip(rows, (part.unbind(1) for part in ids), strict=True):
            self._add(row, image, token)

    def _add(self, rows: Tensor, images: Tensor, tokens: Tensor) -> None:
        weakest = self.best[0, :, -1].to(rows.dtype)  # (F,) an equal value may win by its image
        row, latent = ((rows > self.above) & (rows >= weakest)).nonzero(as_tuple=True)
        new = _Entries(latent, *(part.double() for part in (rows[row, latent], images[row], tokens[row])))
        touched = torch.bincount(latent, minlength=len(weakest)) > 0  # (F,)
        old = _entries(self.best, touched)
        _place(_Entries(*(torch.cat(pair) for pair in zip(old, new, strict=True))), self.best)

    def compute(self) -> Samples:
        """Return the samples."""
        value, image, token = self.best  # (F, k) each
        return Samples(torch.where(image < 0, torch.nan, value), image.long(), token.long())

    def plot(self, val: Samples | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot activation by rank: the mean over latents."""
        import matplotlib.pyplot as plt

        value = (self.compute() if val is None else val).value
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        axes.plot(range(1, value.shape[1] + 1), value.nanmean(0).tolist())
        axes.set(xlabel="rank of the image", ylabel="activation, mean over latents")
        return figure, axes


class _Entries(NamedTuple):
    latent: Tensor  # (M,) int64
    value: Tensor  # (M,) float64, as all below
    image: Tensor  # (M,)
    token: Tensor  # (M,)

    def at(self, index: Tensor) -> "_Entries":
        return _Entries(*(part[index] for part in self))


def merge_samples(states: Tensor) -> Tensor:
    """Return the samples of the union, `(R, 3, F, k) -> (3, F, k)`."""
    merged = states[0].clone()
    merged[0], merged[1:] = -torch.inf, -1.0
    parts = [_entries(state, torch.ones_like(state[0, :, 0], dtype=torch.bool)) for state in states]
    _place(_Entries(*(torch.cat(part) for part in zip(*parts, strict=True))), merged)
    return merged


def _entries(state: Tensor, of: Tensor) -> _Entries:
    """Return the taken places `(3, F, k)` of the latents `of` `(F,)`."""
    latent, place = ((state[1] >= 0) & of[:, None]).nonzero(as_tuple=True)
    return _Entries(latent, *state[:, latent, place])


def _place(entries: _Entries, state: Tensor) -> None:
    """Write the strongest images among entries to the places `(3, F, k)` of their latents."""
    e = entries.at(_order(entries.latent, entries.image, -entries.value, entries.token))
    is_first = torch.ones_like(e.latent, dtype=torch.bool)  # the strongest token of its image
    is_first[1:] = (e.latent.diff() != 0) | (e.image.diff() != 0)
    e = e.at(is_first)
    e = e.at(_order(e.latent, -e.value, e.image))
    start = torch.searchsorted(e.latent, torch.arange(state.shape[1], device=state.device))  # (F,)
    rank = torch.arange(len(e.latent), device=state.device) - start[e.latent]
    e, rank = e.at(rank < state.shape[2]), rank[rank < state.shape[2]]
    state[:, e.latent, rank] = torch.stack([e.value, e.image, e.token])


def _order(*keys: Tensor) -> Tensor:
    """Return the order by the first key, then by the second, and so on, all ascending."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order
