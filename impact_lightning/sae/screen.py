"""Screens: find every pre-activation above a floor, tile by tile, without keeping the dense matrix."""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .codes import Codes, codes_from_flat
from .sparse import row_dots

ScreenName = Literal["fp32", "bf16"]

TILE_BYTES = {"cpu": 2**22, "cuda": 2**30}  # on a CPU a tile stays in cache between product and comparison
UNIT = 2.0**-8  # half the distance between neighbouring bfloat16 numbers, relative
CHUNK = 1024


class Screen(Protocol):
    """Finds the pre-activations above a floor."""

    def above(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, floor: float) -> Codes:
        """Return every entry of `x @ w_enc.T + b_enc` above `floor`, which is 0 or more.

        Args:
            x: Centred inputs `(B, D)`.
            w_enc: Encoder `(F, D)`.
            b_enc: Encoder bias `(F,)`.
            floor: Strict lower bound of what is wanted.
        """


def make_screen(name: ScreenName) -> Screen:
    """Return the screen of that name."""
    return DirectScreen() if name == "fp32" else RoundedScreen()


class DirectScreen:
    """Computes in the precision of the weights and compares."""

    def above(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, floor: float) -> Codes:
        """See `Screen.above`."""
        n_rows, n_latents = len(x), len(w_enc)
        tile = _tile(n_rows, n_latents, x)
        buffer, mask = x.new_empty(tile, n_rows), _mask(tile * n_rows, x.device)
        flats, values = [], []
        for start in range(0, n_latents, tile):
            w, b = w_enc[start : start + tile], b_enc[start : start + tile]
            z = torch.addmm(b[:, None], w, x.T, out=buffer[: len(w)])  # (tile, B): latents are rows
            torch.gt(z, floor, out=mask[: z.numel()].view(z.shape))
            flat = _true_positions(mask, z.numel())
            values.append(z.view(-1).index_select(0, flat))
            flats.append(flat.add_(start * n_rows))
        return codes_from_flat(torch.cat(flats), torch.cat(values), n_rows)


class RoundedScreen:
    """Computes in bfloat16, keeps what could be above the floor, and computes that again in full precision.

    Write x̃ and w̃ for the rounded operands, and z̃ for their product, accumulated in float32 and rounded once. Then
    `|z̃ − z| <= η + u·|z̃|` with `η = ‖x − x̃‖·max‖w‖ + ‖x̃‖·max‖w − w̃‖ + D·2⁻²⁴·‖x̃‖·max‖w̃‖` and `u = 2⁻⁸`, so that no
    entry above the floor is lost. The bias rides along as two more columns, its rounded value and the rest.
    """

    def __init__(self) -> None:
        self._w = torch.empty(0)  # rounded encoder, kept to spare an allocation a step

    def above(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, floor: float) -> Codes:
        """See `Screen.above`."""
        n_rows, n_latents = len(x), len(w_enc)
        w, bounds = self._round_encoder(w_enc, b_enc)
        x_rounded, error = _round_inputs(x, bounds)
        least = floor - error  # (B,)
        least = _round_down(torch.where(least > 0, least / (1 + UNIT), least / (1 - UNIT)))
        # Positive floats order like their bits, and comparing integers is faster.
        kind = torch.int16 if bool((least > 0).all()) else torch.bfloat16
        tile = _tile(n_rows, n_latents, x_rounded)
        buffer = x_rounded.new_empty(tile, n_rows)
        mask = _mask(tile * n_rows, x.device)
        flats = []
        for start in range(0, n_latents, tile):
            z = torch.mm(w[start : start + tile], x_rounded.T, out=buffer[: min(tile, n_latents - start)])
            torch.gt(z.view(kind), least.view(kind), out=mask[: z.numel()].view(z.shape))
            flats.append(_true_positions(mask, z.numel()).add_(start * n_rows))
        found = codes_from_flat(torch.cat(flats), x.new_empty(0), n_rows)
        values = row_dots(w_enc, found.latents, x, found.rows).add_(b_enc.index_select(0, found.latents))
        return found._replace(values=values).keep((values > floor).nonzero().squeeze(1))

    def _round_encoder(self, w_enc: Tensor, b_enc: Tensor) -> "tuple[Tensor, _Bounds]":
        """Return the rounded encoder with its two bias columns, `(F, D + 2)`, and the largest errors of its rows."""
        n_latents, width = w_enc.shape
        if self._w.shape != (n_latents, width + 2) or self._w.device != w_enc.device:
            self._w = w_enc.new_empty(n_latents, width + 2, dtype=torch.bfloat16)
        self._w[:, width] = b_enc
        rest = b_enc - self._w[:, width]
        self._w[:, width + 1] = rest
        rest -= self._w[:, width + 1]
        norms = []
        for full, rounded in zip(w_enc.split(CHUNK), self._w[:, :width].split(CHUNK), strict=True):
            rounded.copy_(full)
            norms.append(torch.stack([_longest(full), _longest(full - rounded)]))
        longest, farthest = torch.stack(norms).amax(0)
        return self._w, _Bounds(longest, farthest, b_enc.abs().amax(), rest.abs().amax(), width + 2)


class _Bounds(NamedTuple):
    """What the error of a rounded product is made of."""

    longest: Tensor  # max‖w‖
    farthest: Tensor  # max‖w − w̃‖
    bias: Tensor  # max|b|
    bias_error: Tensor  # max|b − b̃|
    n_terms: int  # of a dot product


def _round_inputs(x: Tensor, bounds: _Bounds) -> tuple[Tensor, Tensor]:
    """Return the rounded inputs with two columns of ones, `(B, D + 2)`, and the error `η` of each row, `(B,)`."""
    n_rows, width = x.shape
    rounded = x.new_ones(n_rows, width + 2, dtype=torch.bfloat16)
    rounded[:, :width] = x
    farther = torch.linalg.vector_norm(x - rounded[:, :width], dim=1)
    length = torch.linalg.vector_norm(x, dim=1) + farther
    size = length * (bounds.longest + bounds.farthest) + 2 * bounds.bias
    summed = bounds.n_terms * 2.0**-23 * size  # 2⁻²⁴ for the rounded product, and as much for the full one
    error = farther * bounds.longest + length * bounds.farthest + bounds.bias_error + summed
    return rounded, error * 1.001  # these norms are rounded themselves


def _longest(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).amax()


def _round_down(x: Tensor) -> Tensor:
    """Return the largest bfloat16 numbers that are not above `x`."""
    rounded = x.bfloat16()
    return torch.where(rounded > x, torch.nextafter(rounded, torch.full_like(rounded, -torch.inf)), rounded)


def _tile(n_rows: int, n_latents: int, like: Tensor) -> int:
    """Return how many latents a tile holds."""
    size = TILE_BYTES.get(like.device.type, 2**22) // like.element_size()
    return min(n_latents, max(64, size // max(n_rows, 1)))


def _mask(size: int, device: torch.device) -> Tensor:
    return torch.zeros(-(-size // 8) * 8, dtype=torch.bool, device=device)


def _true_positions(mask: Tensor, size: int) -> Tensor:
    """Return the ascending positions of true values among the first `size` of a mask whose length divides by eight.

    True is rare, so that looking at eight at a time first takes a third of the time of `nonzero`.
    """
    mask[size : -(-size // 8) * 8] = False
    eights = mask[: -(-size // 8) * 8].view(torch.int64)
    hit = eights.nonzero().squeeze(1)
    inside = eights.index_select(0, hit).view(torch.bool).nonzero().squeeze(1)
    return hit.index_select(0, inside >> 3).mul_(8).add_(inside.bitwise_and_(7))
