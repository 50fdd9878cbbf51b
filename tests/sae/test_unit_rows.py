"""Projected gradients have no part along unit rows, which renormalising keeps."""

import pytest
import torch

from impact_lightning.sae import unit_rows
from impact_lightning.sae.unit_rows import project, renormalise


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_projection_leaves_no_radial_gradient(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_rows, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    rows, gradient = (torch.randn(50, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    renormalise(rows)
    before = gradient.clone()
    project(gradient, rows)
    assert float((gradient * rows).sum(1).abs().max()) < 1e-14
    torch.testing.assert_close(before - gradient, (before * rows).sum(1, keepdim=True) * rows)


def test_rows_get_unit_length_and_a_row_of_zeros_stays() -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    renormalise(rows)
    torch.testing.assert_close(rows, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
