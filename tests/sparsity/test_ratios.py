"""Ratios of layers make the sparsity of the whole."""

import pytest
import timm
import torch
from torch import Tensor

from impact_lightning.sparsity import Inputs, Target, find_targets
from impact_lightning.sparsity.ratios import OUTLIER, SPREAD, mapped_ratios, outlier_ratios, outlier_shares
from impact_lightning.types import UserError
from tests.sparsity.tiny import ARGS


@pytest.fixture(scope="module")
def targets() -> list[Target]:
    return find_targets(timm.create_model("vit_tiny_patch16_224", num_classes=5, **ARGS), ["blocks.*", "head"])


def total(targets: list[Target], ratios: dict[str, float]) -> float:
    sizes = {target.name: target.weight.numel() for target in targets}
    return sum(ratios[name] * size for name, size in sizes.items()) / sum(sizes.values())


def test_layers_without_a_ratio_share_the_rest(targets: list[Target]) -> None:
    ratios = mapped_ratios(targets, 0.5, {"blocks.0.*": 0.2, "blocks.0.mlp.fc1": 0.0, "head": 0.1})
    assert [ratios[f"blocks.0.{name}.weight"] for name in ("attn.qkv", "mlp.fc1", "mlp.fc2")] == [0.2, 0.0, 0.2]
    assert ratios["head.weight"] == 0.1
    assert len({ratios[target.name] for target in targets if target.stage in (1, 2)}) == 1
    assert total(targets, ratios) == pytest.approx(0.5, abs=1e-12)


def test_ratios_that_cannot_make_the_sparsity_are_refused(targets: list[Target]) -> None:
    with pytest.raises(UserError, match="would need the ratio"):
        mapped_ratios(targets, 0.9, {"blocks.0.*": 0.1, "blocks.1.*": 0.1})
    with pytest.raises(UserError, match=r"they make 0\.300000 of all weights zero, and sparsity says 0\.5"):
        mapped_ratios(targets, 0.5, {"*": 0.3})
    with pytest.raises(UserError, match=r"must lie in \[0, 1\)"):
        mapped_ratios(targets, 0.5, {"blocks.0.*": 1.0})
    with pytest.raises(UserError, match="ratios: no weights are named"):
        mapped_ratios(targets, 0.5, {"blocks.9.*": 0.3})
    assert set(mapped_ratios(targets, 0.3, {"*": 0.3}).values()) == {0.3}


def test_shares_count_scores_above_a_multiple_of_the_mean_of_the_block(targets: list[Target]) -> None:
    generator = torch.Generator().manual_seed(0)
    squares = {target.name: torch.rand(target.weight.shape[1], generator=generator).double() ** 8 for target in targets}
    shares = outlier_shares(targets, {name: Inputs(value, 1) for name, value in squares.items()})
    for stage, share in shares.items():
        scores: list[Tensor] = [
            (target.weight.double().abs() * squares[target.name].sqrt()).flatten()
            for target in targets
            if target.stage == stage
        ]
        together = torch.cat(scores)
        assert share == pytest.approx(float((together > OUTLIER * together.mean()).sum()) / len(together))
        assert 0 < share < 1


def test_outliers_spare_their_block_as_in_owl(targets: list[Target]) -> None:
    blocks = [target for target in targets if target.stage < 3]
    shares = {0: 0.01, 1: 0.04, 2: 0.02}
    ratios = outlier_ratios(blocks, 0.6, shares)
    owl = torch.tensor(list(shares.values()))  # the lines of the authors' code, for blocks of one size
    owl = (owl - owl.min()) * (1 / (owl.max() - owl.min()) * SPREAD * 2)
    owl = owl - owl.mean() + (1 - 0.6)
    for target in blocks:
        assert 1 - ratios[target.name] == pytest.approx(float(owl[target.stage]), abs=1e-6)


@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.3, 0.5, 0.95])
def test_the_whole_has_the_sparsity_and_no_layer_vanishes(targets: list[Target], sparsity: float) -> None:
    ratios = outlier_ratios(targets, sparsity, {0: 0.01, 1: 0.04, 2: 0.02, 3: 0.0})
    assert total(targets, ratios) == pytest.approx(sparsity, abs=1e-12)
    assert all(0 <= ratio <= 1 - (1 - sparsity) / 2 + 1e-12 for ratio in ratios.values())
    assert set(outlier_ratios(targets, sparsity, dict.fromkeys(range(4), 0.02)).values()) == {sparsity}
