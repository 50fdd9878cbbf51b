"""Ratios of totals are nan, and only then, where they are undefined."""

import torch

from impact_lightning.metrics.ratio import ratio


def test_a_ratio_to_zero_is_nan_and_never_infinite() -> None:
    assert ratio(torch.tensor([1.0, 0.0, -1.0]), torch.zeros(3)).isnan().all()


def test_integers_divide_in_float64() -> None:
    big = 2**40 + 1
    assert ratio(torch.tensor(big), torch.tensor(big - 1)).item() == big / (big - 1)
