"""The largest weights stay, in exact number, and every unit keeps its share of them."""

import pytest
import torch
from torch import Tensor, nn

from impact_lightning.sparsity.sparse_tensor import SparseTensor
from impact_lightning.sparsity.targets import Target
from impact_lightning.types import UserError

NAMES = {"blocks.0.mlp.fc1.weight": 0, "blocks.0.attn.proj.weight": 1}


def make(weight: Tensor, name: str = "head.weight", *, multiple: float = 1.0, min_alive: int = 0) -> SparseTensor:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight
    return SparseTensor(Target(name, layer, stage=0), multiple, min_alive)


def brute_force(weight: Tensor, k: int, min_alive: int = 0, dim: int = 0) -> Tensor:
    """Order by magnitude, then index; the first of every unit have an infinite score, and the k first are kept."""
    n_rows, n_columns = weight.shape
    entries = [(i, j) for i in range(n_rows) for j in range(n_columns)]
    order = {(i, j): (abs(float(weight[i, j])), i * n_columns + j) for i, j in entries}
    for unit in range(weight.shape[dim]):
        own = sorted((entry for entry in entries if entry[dim] == unit), key=lambda entry: order[entry])
        for entry in own[len(own) - min_alive :]:
            order[entry] = (float("inf"), order[entry][1])
    kept = sorted(entries, key=lambda entry: order[entry])[len(entries) - k :]
    expected = torch.zeros_like(weight)
    for i, j in kept:
        expected[i, j] = weight[i, j]
    return expected


@pytest.mark.parametrize("levels", [0, 3])  # 0: no magnitude occurs twice; else many do
@pytest.mark.parametrize("k", [1, 13, 40, 76, 77])
def test_the_k_largest_magnitudes_stay(k: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(k)
    weight = torch.randn(7, 11, generator=generator)
    for _ in range(5):  # warm
        weight = weight + 0.1 * torch.randn(7, 11, generator=generator)
        given = (weight * levels).round() if levels else weight.clone()
        tensor = make(given.clone())
        tensor.sparsify(tensor.weight, k)
        assert torch.equal(tensor.weight, brute_force(given, k))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize(("k", "min_alive"), [(24, 2), (30, 2), (36, 3), (60, 2), (12, 1), (95, 1)])
def test_every_unit_keeps_its_least_and_the_total_does_not_change(
    name: str, levels: int, k: int, min_alive: int
) -> None:
    generator = torch.Generator().manual_seed(k)
    scale = torch.logspace(-3, 0, 12)  # units of very different size
    scale = scale[:, None] if NAMES[name] == 0 else scale
    shape = (12, 8) if NAMES[name] == 0 else (8, 12)
    weight = torch.randn(shape, generator=generator) * scale
    tensor = make(weight, name, min_alive=min_alive)
    for _ in range(6):
        weight = weight + 0.05 * torch.randn(shape, generator=generator) * scale
        given = (1 + (weight.abs() * levels / scale).round()) if levels else weight.clone()  # no zeros
        work = given.clone()
        tensor.sparsify(work, k)
        assert torch.equal(work, brute_force(given, k, min_alive, NAMES[name]))
        assert int(work.count_nonzero()) == k
        assert int(work.count_nonzero(dim=1 - NAMES[name]).min()) >= min_alive


def test_units_are_rows_that_write_them_and_columns_that_read_them() -> None:
    dims = {name: make(torch.ones(2, 2), f"blocks.3.{name}.weight").unit_dim for name in ("attn.qkv", "mlp.fc1")}
    assert dims == {"attn.qkv": 0, "mlp.fc1": 0}
    dims = {name: make(torch.ones(2, 2), f"blocks.3.{name}.weight").unit_dim for name in ("attn.proj", "mlp.fc2")}
    assert dims == {"attn.proj": 1, "mlp.fc2": 1}
    assert make(torch.ones(2, 2), "head.weight", min_alive=4).min_alive == 0


def test_counts_are_floors_of_decimal_numbers() -> None:
    tensor = make(torch.ones(10, 10), multiple=3.0)
    assert tensor.n_kept(0.1) == 30  # not 30.000000000000004
    assert tensor.n_kept(0.29) == 87
    assert tensor.n_kept(0.0333) == 9
    assert tensor.n_kept(0.5) == 100
    assert tensor.density(0.5) == 1.0


def test_all_or_the_nonzero_ones_stay_bit_for_bit() -> None:
    weight = torch.randn(5, 5)
    tensor = make(weight.clone())
    tensor.sparsify(tensor.weight, 25)
    assert torch.equal(tensor.weight, weight)
    tensor.sparsify(tensor.weight, 10)
    once = tensor.weight.clone()
    tensor.sparsify(tensor.weight, 10)
    tensor.sparsify(tensor.weight, 20)  # zeros are among the largest then
    assert torch.equal(tensor.weight, once)


def test_a_density_that_leaves_too_few_is_refused() -> None:
    weight, name = torch.ones(12, 8), "blocks.0.mlp.fc1.weight"
    with pytest.raises(UserError, match=r"keeps 9 of the 96 weights of blocks\.0\.mlp\.fc1\.weight.*needs 12"):
        make(weight, name, min_alive=1).check(0.1)
    with pytest.raises(UserError, match=r"keeps 0 of the 96 .* that is none: raise density"):
        make(weight, name).check(0.001)
    make(weight, name, min_alive=1).check(0.125)
