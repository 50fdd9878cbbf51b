"""A model whose weights mean nothing has the weights that it had."""

import torch

from impact_lightning.circuits.controls import permute_weights
from tests.circuits.test_fold import vit


def test_weights_are_permuted_and_zeros_stay() -> None:
    model, before = vit(), vit()
    for one in (model, before):
        one.blocks[0].mlp.fc1.weight[:3] = 0
    permute_weights(model, seed=1)
    for (name, now), was in zip(model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now.flatten().sort().values, was.flatten().sort().values)
        assert torch.equal(now == 0, was == 0)
        is_matrix = name.endswith("weight") and now.ndim > 1
        assert torch.equal(now, was) != is_matrix
    again = vit()
    again.blocks[0].mlp.fc1.weight[:3] = 0
    permute_weights(again, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
