"""Multigrid: an approximate inverse of the mean over neighbours, for conjugate gradients to need few steps.

A step of Jacobi smooths an error within a few pixels; what is left is smooth enough to be solved for on every second
pixel, and so on. On a coarser grid the operator is the same stencil, and pixels that stay hold their neighbours as they
do on the finer one: by what the operator makes of ones.

Images lie flat, each with a border of zeros, one column of it between rows: a shift by a pixel or a row is a shift of
the whole array, at the speed of the cache.
"""

import torch
from torch import Tensor

SMALLEST = 8  # sides of the coarsest grid
SWEEPS = 6  # steps of Jacobi there
UNKNOWN = 0.5  # share of a neighbourhood that must be unknown for a coarse pixel to be


class Grid:
    """The operator `12 A = E - B` on the unknown pixels of one grid, B the blur by `[1 2 1]` in both directions.

    Args:
        unknown: 1 on pixels that are to be found, 0 on others `(J, h, w)`.
        held: How strongly each of them is held by pixels that stay, in twelfths `(J, h, w)`.
        channels: Number C of right sides of each system.
    """

    def __init__(self, unknown: Tensor, held: Tensor, channels: int) -> None:
        n, self.h, self.w = unknown.shape
        self.pitch = self.w + 1
        self.unknown, self.held = self.padded(unknown[:, None]), self.padded(held[:, None])  # (J, 1, L)
        length = self.unknown.shape[2]
        self.rows, self.out, self.stuffed, self.solution, self.right = unknown.new_zeros(5, n, channels, length)
        degree = (self.blurred(self.unknown) - 4 * self.unknown + self.held) * self.unknown
        self.diagonal = degree + 4 * self.unknown  # E
        self.inverse = torch.where(degree > 0, 1 / degree, 0.0)
        self.left = self.unknown - self.diagonal * self.inverse  # I - E / degree: what one step of Jacobi leaves
        edge = unknown.new_ones(self.h, self.w)  # the last of an even number of pixels has one coarse neighbour only
        edge[-1] *= 2 - self.h % 2
        edge[:, -1] *= 2 - self.w % 2
        self.weight = self.unknown * self.padded(edge[None, None])

    def padded(self, x: Tensor) -> Tensor:
        """Return images `(J, C, h, w)` flat, with their borders `(J, C, L)`."""
        flat = x.new_zeros(*x.shape[:2], (self.h + 2) * self.pitch + 1)
        self.grid(flat).copy_(x)
        return flat

    def grid(self, flat: Tensor) -> Tensor:
        """Return the images `(J, C, h, w)` inside a flat array: a view."""
        rows: Tensor = flat[..., 1:].unflatten(-1, (self.h + 2, self.pitch))
        return rows[..., 1:-1, : self.w]

    def blurred(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return x `(J, C, L)` blurred by `[1 2 1]` in both directions; valid inside the border."""
        n, channels, length = x.shape
        rows = self.rows[:n, :channels]
        out = (self.out if out is None else out)[:n, :channels]
        last = length - self.pitch
        middle = rows[..., self.pitch : last]
        torch.add(x[..., : last - self.pitch], x[..., 2 * self.pitch :], out=middle)
        middle.add_(x[..., self.pitch : last], alpha=2)
        inner = out[..., 1:-1]
        torch.add(rows[..., :-2], rows[..., 2:], out=inner)
        inner.add_(rows[..., 1:-1], alpha=2)
        return out

    def applied(self, x: Tensor) -> Tensor:
        """Return `12 A x`."""
        return (self.diagonal * x).addcmul_(self.blurred(x), self.unknown, value=-1)

    def smooth(self, x: Tensor, right: Tensor) -> None:
        """Take a step of Jacobi: `x += (right - 12 A x) / degree`."""
        x.addcmul_(self.blurred(x).add_(right).addcmul_(self.diagonal, x, value=-1), self.inverse)

    def coarser(self) -> "Grid":
        """Return the grid of every second pixel."""
        shares = self.grid(self.blurred(self.unknown))[:, 0, ::2, ::2] / 16
        unknown = (shares > UNKNOWN).to(shares)
        held = self.grid(self.blurred(self.held * self.weight))[:, 0, ::2, ::2] / 4
        return Grid(unknown, held * unknown, self.out.shape[1])


class Multigrid:
    """One V-cycle, symmetric and positive definite: an approximate inverse of `12 A`.

    Args:
        unknown: 1 on pixels that are to be found, 0 on others `(J, h, w)`.
        held: The weight of the neighbours of each that stay, in twelfths `(J, h, w)`.
        channels: Number C of right sides of each system.
    """

    def __init__(self, unknown: Tensor, held: Tensor, channels: int) -> None:
        self.finest = Grid(unknown, held, channels)
        self.grids = [self.finest]
        while min(self.grids[-1].h, self.grids[-1].w) > SMALLEST:
            self.grids.append(self.grids[-1].coarser())

    def __call__(self, right: Tensor) -> Tensor:
        """Return an approximate solution `(J, C, L)`, in memory that the next call uses again."""
        return self._cycle(0, right)

    def _cycle(self, i: int, right: Tensor) -> Tensor:
        fine = self.grids[i]
        x = torch.mul(right, fine.inverse, out=fine.solution)  # a step of Jacobi from zero
        if i + 1 == len(self.grids):
            for _ in range(SWEEPS):
                fine.smooth(x, right)
            return x
        coarse = self.grids[i + 1]
        residual = fine.blurred(x).addcmul_(right, fine.left).mul_(fine.weight)
        means = fine.grid(fine.blurred(residual, out=fine.stuffed))[..., ::2, ::2]
        torch.mul(means, coarse.grid(coarse.unknown), out=coarse.grid(coarse.right))
        error = self._cycle(i + 1, coarse.right.mul_(0.25))  # four times the mean: a coarse pixel is twice as wide
        fine.stuffed.zero_()
        fine.grid(fine.stuffed)[..., ::2, ::2] = coarse.grid(error)
        x.addcmul_(fine.blurred(fine.stuffed), fine.weight, value=0.25)  # bilinear between coarse pixels
        fine.smooth(x, right)
        return x
