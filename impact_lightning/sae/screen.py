"""Screens: find every pre-activation above a floor, tile by tile, without keeping the dense matrix."""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from impact_lightning.sae.codes import Codes
from impact_lightning.sae.product import products_above
from impact_lightning.sae.sparse import row_dots

ScreenName = Literal["fp32", "bf16"]

UNIT = 2.0**-8  # half the distance between neighbouring bfloat16 numbers, relative
CHUNK = 1024  # rows of the encoder that are rounded and measured while they are in cache


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
        # Adding the bias to candidates only spares a pass. 2⁻²⁰ covers the rounding of both sides of the comparison.
        least = (floor - b_enc - 2.0**-20 * (floor + b_enc.abs()))[:, None]  # (F, 1)
        found = products_above(w_enc, x, least)
        return _refine(found, found.values + b_enc.index_select(0, found.latents), floor)


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
        w, bounds = self._round_encoder(w_enc, b_enc)
        x_rounded, error = _round_inputs(x, bounds)
        least = floor - error  # (B,)
        least = _round_down(torch.where(least > 0, least / (1 + UNIT), least / (1 - UNIT)))[None]  # (1, B)
        # Positive floats order like their bits, and comparing integers is faster.
        kind = torch.int16 if bool((least > 0).all()) else torch.bfloat16
        found = products_above(w, x_rounded, least, kind)
        exact = row_dots(w_enc, found.latents, x, found.rows)
        return _refine(found, exact.add_(b_enc.index_select(0, found.latents)), floor)

    def _round_encoder(self, w_enc: Tensor, b_enc: Tensor) -> "tuple[Tensor, _Bounds]":
        """Return the rounded encoder with its two bias columns, `(F, D + 2)`, and the largest errors of its rows."""
        n_latents, width = w_enc.shape
        if self._w.shape != (n_latents, width + 2) or self._w.device != w_enc.device:
            self._w = w_enc.new_empty(n_latents, width + 2, dtype=torch.bfloat16)
        self._w[:, width] = b_enc
        rest = b_enc - self._w[:, width]
        self._w[:, width + 1] = rest
        rest -= self._w[:, width + 1]
        longest = []
        for full, rounded in zip(w_enc.split(CHUNK), self._w[:, :width].split(CHUNK), strict=True):
            rounded.copy_(full)
            longest.append(torch.linalg.vector_norm(full, dim=1).amax())
        return self._w, _Bounds(torch.stack(longest).amax(), b_enc.abs().amax(), rest.abs().amax(), width + 2)


class _Bounds(NamedTuple):
    """What the error of a rounded product is made of."""

    longest: Tensor  # max‖w‖
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
    farthest = UNIT * bounds.longest  # of w̃ from w: measuring it takes longer than refining what a smaller bound spares
    size = length * (bounds.longest + farthest) + 2 * bounds.bias
    summed = bounds.n_terms * 2.0**-23 * size  # 2⁻²⁴ for the rounded product, and as much for the full one
    error = farther * bounds.longest + length * farthest + bounds.bias_error + summed
    return rounded, error * 1.001  # these norms are rounded themselves


def _round_down(x: Tensor) -> Tensor:
    """Return the largest bfloat16 numbers that are not above `x`."""
    rounded = x.bfloat16()
    return torch.where(rounded > x, torch.nextafter(rounded, torch.full_like(rounded, -torch.inf)), rounded)


def _refine(found: Codes, values: Tensor, floor: float) -> Codes:
    """Return those of the entries whose exact values are above the floor."""
    return found._replace(values=values).take((values > floor).nonzero().squeeze(1))
