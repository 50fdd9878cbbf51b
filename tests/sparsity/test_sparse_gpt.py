"""SparseGPT is its literal definition: a block at a time, a column at a time, errors carried to the right."""

import pytest
import torch
from torch import Tensor

from impact_lightning.sparsity.masks import NofM, n_zeros, tensor_mask
from impact_lightning.sparsity.scores import magnitude, wanda
from impact_lightning.sparsity.sparse_gpt import sparse_gpt


def lowest(scores: Tensor, zeros: int) -> list[tuple[int, int]]:
    """Return the places of the lowest scores, rows first, the first of equal ones first."""
    places = [(i, j) for i in range(scores.shape[0]) for j in range(scores.shape[1])]
    return sorted(places, key=lambda place: (float(scores[place]), place))[:zeros]


def oracle(weight: Tensor, x: Tensor, prune: float | NofM, width: int) -> tuple[Tensor, Tensor]:
    """The definition with scalars: no block products, every error goes at once to all columns on its right."""
    w, n_out, n_in = weight.double().clone(), *weight.shape
    h = 2 * x.double().T @ x.double() / len(x)
    for j in range(n_in):
        if h[j, j] == 0:
            h[j, j], w[:, j] = 1.0, 0.0
    h = h + 0.01 * h.diagonal().mean() * torch.eye(n_in, dtype=torch.float64)
    u = torch.linalg.cholesky(torch.linalg.inv(h)).T
    mask = torch.ones(n_out, n_in, dtype=torch.bool)
    for j in range(n_in):
        if isinstance(prune, float) and j % width == 0:
            stop = min(j + width, n_in)
            zeros = n_zeros(prune, stop * n_out) - n_zeros(prune, j * n_out)
            for i, column in lowest((w[:, j:stop] / u.diagonal()[j:stop]) ** 2, zeros):
                mask[i, j + column] = False
        if isinstance(prune, NofM) and j % prune.of == 0:
            for i in range(n_out):
                scores = (w[i, j : j + prune.of] / u.diagonal()[j : j + prune.of]) ** 2
                for _, column in lowest(scores[None], prune.of - prune.keep):
                    mask[i, j + column] = False
        for i in range(n_out):
            if not mask[i, j]:
                error = w[i, j] / u[j, j]
                w[i, j:] -= error * u[j, j:]
                w[i, j] = 0.0
    return w, mask


def layer(n_out: int, n_in: int, n: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_out * n_in)
    x = torch.randn(n, n_in, generator=generator) @ torch.randn(n_in, n_in, generator=generator) * 0.1
    return torch.randn(n_out, n_in, generator=generator), x


@pytest.mark.parametrize(
    ("shape", "prune"),
    [
        ((5, 37), 0.5),
        ((7, 150), 0.3),
        ((3, 261), 0.9),
        ((6, 128), 0.0),
        ((5, 24), NofM(2, 4)),
        ((4, 136), NofM(1, 4)),
        ((3, 135), NofM(2, 3)),  # 128 is no multiple of 3
    ],
)
@pytest.mark.parametrize("silent", [False, True])
def test_equals_the_definition(shape: tuple[int, int], prune: float | NofM, silent: bool) -> None:
    weight, x = layer(*shape)
    if silent:
        x[:, 3:6] = 0
    expected, expected_mask = oracle(weight, x, prune, 128)
    pruned, mask = sparse_gpt(weight.double(), x.double().T @ x.double(), len(x), prune)
    assert torch.equal(mask, expected_mask)
    assert torch.allclose(pruned, expected, rtol=1e-9, atol=1e-9)
    assert not pruned[~mask].any()
    zeros = (
        n_zeros(prune, weight.numel())
        if isinstance(prune, float)
        else weight.numel() * (prune.of - prune.keep) // prune.of
    )
    assert int((~mask).sum()) == zeros


@pytest.mark.parametrize("prune", [0.5, NofM(2, 4)])
def test_ties_go_by_index(prune: float | NofM) -> None:
    weight = torch.ones(4, 136)
    pruned, mask = sparse_gpt(weight, 10 * torch.eye(136), 10, prune)
    expected, expected_mask = oracle(weight, torch.eye(136).repeat(10, 1) * 136**0.5, prune, 128)
    assert torch.equal(mask, expected_mask)
    assert torch.equal(pruned.double(), expected)


@pytest.mark.parametrize("shape", [(9, 128), (9, 200)])
def test_with_independent_inputs_it_is_magnitude_per_block_and_changes_no_weight(shape: tuple[int, int]) -> None:
    weight, _ = layer(*shape)
    pruned, mask = sparse_gpt(weight, torch.eye(shape[1]), 1, 0.5)
    for start in range(0, shape[1], 128):
        block = weight[:, start : start + 128].abs()
        removed = lowest(block, block.numel() // 2)
        assert {(i, j) for i, j in (~mask[:, start : start + 128]).nonzero().tolist()} == set(removed)
    assert torch.equal(pruned, weight * mask)


def test_the_layer_errs_less_than_after_magnitude_and_wanda() -> None:
    weight, x = layer(32, 64)
    x = x * torch.linspace(0.1, 2, 64)
    x = x @ (torch.eye(64) + 0.5)  # inputs that can stand in for each other
    pruned, _ = sparse_gpt(weight, x.T @ x, len(x), 0.5)
    masks = [tensor_mask(magnitude(weight), 0.5), tensor_mask(wanda(weight, x.double().norm(dim=0)), 0.5)]
    by_magnitude, by_wanda = (float((x @ (weight * mask - weight).T).square().mean()) for mask in masks)
    assert float((x @ (pruned - weight).T).square().mean()) < min(by_magnitude, by_wanda)
