"""Reconstruction from sparse codes, forward and backward, without a dense matrix of codes."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from impact_lightning.sae.codes import Codes, bounds
from impact_lightning.sae.gradient_memory import GradientMemory
from impact_lightning.sae.sparse import Less, row_dots, segment_sums, weighted_rows, write_weighted_rows
from impact_lightning.sae.unit_rows import project


class Weights(NamedTuple):
    """Parameters of a dictionary, one row per latent."""

    w_enc: Tensor  # (F, D_in)
    b_enc: Tensor  # (F,)
    w_dec: Tensor  # (F, D_out)
    b_dec: Tensor  # (D_out,)


class DeadCodes(NamedTuple):
    """Codes that latents without recent activity would have."""

    latents: Tensor  # (n,) int64, distinct
    values: Tensor  # (B, n)
    chosen: Tensor  # (B, n) bool: where gradient passes


@dataclass(frozen=True)
class Layout:
    """How a reconstruction is laid out.

    Args:
        centred: The input without `b_dec`, `(B, D_in)`, or None where that is not subtracted, as in transcoders.
        prefixes: Ascending widths; one reconstruction is made from the latents below each. The last is all latents.
        memory: Where weight gradients are written, or None for fresh memory.
        tangent: Whether to leave out of the gradient of each row of `w_dec` its part along the row, of unit length.
            It costs nothing here, `⟨∂loss/∂d_j, d_j⟩ = Σ v_i ⟨g_i, d_j⟩`, and a pass elsewhere.
    """

    centred: Tensor | None
    prefixes: tuple[int, ...]
    memory: GradientMemory | None = None
    tangent: bool = False

    def room(self, name: str, weight: Tensor) -> Tensor:
        """Return memory for the gradient of a weight."""
        return torch.empty_like(weight) if self.memory is None else self.memory.room(name, weight)


class Reconstruction(NamedTuple):
    """What a dictionary makes of its codes."""

    outputs: Tensor  # (G, B, D_out), one for each prefix
    values: Tensor  # (M,) the codes' values, with gradient
    dead: Tensor  # (B, D_out) what dead latents add, without bias; empty where there are none


def reconstruct(
    x: Tensor, weights: Weights, codes: Codes, layout: Layout, dead: DeadCodes | None = None
) -> Reconstruction:
    """Return `Σ_j f_j d_j + b_dec` with the gradients of the dense formula on the kept entries.

    `codes.values` and `dead.values` must be what `x` and `weights` give at those entries; they come without gradient,
    which is attached here: `∂f/∂z = 1` where an entry is kept and 0 elsewhere.
    """
    return Reconstruction(*_Reconstruct.apply(x, *weights, codes, layout, dead))


class _Reconstruct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        w_dec: Tensor,
        b_dec: Tensor,
        codes: Codes,
        layout: Layout,
        dead: DeadCodes | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_rows, n_groups = len(x), len(layout.prefixes)
        xc = x if layout.centred is None else layout.centred
        # Row r as seen by group g stands in row g·B + r of the tables below.
        slots = codes.rows
        if n_groups > 1:
            groups = torch.searchsorted(torch.tensor(layout.prefixes, device=x.device), codes.latents, right=True)
            slots = slots + n_rows * groups
        order = torch.argsort(slots, stable=True)
        by_row = codes.take(order)
        ends = bounds(slots.index_select(0, order), n_groups * n_rows)
        parts = weighted_rows(w_dec, by_row.latents, ends, by_row.values)  # (G·B, D_out)
        outputs = parts.view(n_groups, n_rows, -1)
        if n_groups > 1:
            outputs = outputs.cumsum(0)  # prefix g holds the groups up to g
        ctx.save_for_backward(xc, w_enc, w_dec, *codes, slots, *(dead or ()))
        ctx.layout = layout
        ctx.set_materialize_grads(False)
        from_dead = dead.values @ w_dec[dead.latents] if dead else x.new_empty(0)
        return outputs + b_dec, codes.values.clone(), from_dead

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_outputs: Tensor | None, g_values: Tensor | None, g_dead: Tensor | None) -> tuple[Any, ...]:
        xc, w_enc, w_dec, rows, latents, values, slots, *rest = ctx.saved_tensors
        layout: Layout = ctx.layout
        if g_outputs is None:
            g_outputs = xc.new_zeros(len(layout.prefixes), len(xc), w_dec.shape[1])
        # A latent of group g is part of the prefixes g, g + 1, …
        seen = g_outputs.flip(0).cumsum(0).flip(0) if len(layout.prefixes) > 1 else g_outputs
        seen = seen.reshape(-1, w_dec.shape[1])  # (G, B, D_out) -> (G·B, D_out)

        d_values = row_dots(w_dec, latents, seen, slots)
        by_latent = bounds(latents, len(w_enc))
        radial = Less(w_dec, segment_sums(values * d_values, by_latent)) if layout.tangent else None
        if g_values is not None:
            d_values = d_values + g_values
        d_b_enc = segment_sums(d_values, by_latent)
        d_w_dec = write_weighted_rows(layout.room("w_dec", w_dec), seen, slots, by_latent, values, less=radial)
        d_w_enc = write_weighted_rows(layout.room("w_enc", w_enc), xc, rows, by_latent, d_values)
        dead = DeadCodes(*rest) if rest else None
        if dead and g_dead is not None:
            d_z = (g_dead @ w_dec[dead.latents].T).mul_(dead.chosen)  # (B, n)
            d_rows = dead.values.T @ g_dead  # (n, D_out)
            if layout.tangent:
                project(d_rows, w_dec[dead.latents])
            d_w_dec.index_add_(0, dead.latents, d_rows)
            d_w_enc.index_add_(0, dead.latents, d_z.T @ xc)
            d_b_enc.index_add_(0, dead.latents, d_z.sum(0))
        d_b_dec = g_outputs.sum((0, 1))
        if layout.centred is not None:
            d_b_dec -= d_b_enc @ w_enc  # = −Σ_rows ∂loss/∂xc, as a matrix-vector product
        d_x = None
        if ctx.needs_input_grad[0]:
            order = torch.argsort(rows, stable=True)
            d_x = weighted_rows(w_enc, latents[order], bounds(rows[order], len(xc)), d_values[order])
            if dead and g_dead is not None:
                d_x.addmm_(d_z, w_enc[dead.latents])
        return d_x, d_w_enc, d_b_enc, d_w_dec, d_b_dec, None, None, None
