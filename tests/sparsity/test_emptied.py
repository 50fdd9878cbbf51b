"""Empty rows, columns and neurons are those that loops find."""

import torch

from impact_lightning.sparsity.emptied import Emptied, emptied


def test_rows_columns_and_neurons_are_counted_once() -> None:
    fc1 = torch.ones(4, 3, dtype=torch.bool)  # four neurons that read three channels
    fc2 = torch.ones(3, 4, dtype=torch.bool)
    fc1[0] = False  # neuron 0 is constant
    fc2[:, 0] = False  # and nothing reads it
    fc2[:, 2] = False  # nothing reads neuron 2
    qkv = torch.ones(9, 3, dtype=torch.bool)
    qkv[:, 1] = False
    masks = {"blocks.1.mlp.fc1.weight": fc1, "blocks.1.mlp.fc2.weight": fc2, "blocks.1.attn.qkv.weight": qkv}
    found = emptied(masks)
    assert found == Emptied(rows=1, columns=3, neurons=2, of_neurons=4)
    assert str(found) == "2 of 4 neurons dead, 1 rows and 3 columns empty"


def test_a_convolution_is_a_matrix_and_no_neuron() -> None:
    patches = torch.zeros(5, 3, 2, 2, dtype=torch.bool)
    patches[0, 0, 0, 0] = True
    assert emptied({"patch_embed.proj.weight": patches}) == Emptied(rows=4, columns=11, neurons=0, of_neurons=0)
