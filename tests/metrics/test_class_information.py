"""Class information equals scikit-learn's mutual information, exactly the same on any number of ranks."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor
from torchmetrics import MetricCollection

from impact_lightning.metrics.class_information import ClassInformation
from impact_lightning.types import UserError
from tests.distributed import run_distributed
from tests.metrics.test_class_sums import CONSTANT, SILENT, C, K, activations, batches, close, labels
from tests.metrics.test_class_sums import of_rank as parts_of_rank

EACH = torch.tensor([0.0, 0.5, -2e3, 1.0, -1.0, 0.05, 0.5])  # the last is a value that occurs


def measured(parts: list[tuple[Tensor, Tensor]], threshold: float | Tensor = 0.0) -> Tensor:
    metric = ClassInformation(parts[0][0].shape[1], C, threshold=threshold)
    for part in parts:
        metric.update(*part)
    result = metric.compute()
    assert isinstance(result, Tensor)
    return result


def by_hand(threshold: float | Tensor = 0.0) -> np.ndarray:
    fires = (activations() > threshold).numpy()
    varies = (fires != fires[0]).any(0)
    return np.array([mutual_info_score(labels().numpy(), fires[:, k]) if varies[k] else math.nan for k in range(K)])


@pytest.mark.parametrize("threshold", [0.0, 0.7, EACH])
def test_equals_scikit_learn_in_any_order_and_batches(threshold: float | Tensor) -> None:
    expected = by_hand(threshold)
    assert np.isnan(expected).nonzero()[0].tolist() == [SILENT, CONSTANT]
    result = measured([(activations(), labels())], threshold)
    assert result.numpy() == close(expected)
    assert measured(batches(), threshold).nan_to_num(-1).equal(result.nan_to_num(-1))


def test_the_scale_does_not_matter() -> None:
    assert measured([(activations() * 8, labels())], EACH * 8).numpy() == close(by_hand(EACH))


def test_independence_is_zero_and_a_detector_has_the_entropy_of_its_class() -> None:
    y = torch.arange(4 * C) % C
    x = torch.stack([torch.arange(4 * C) // C % 2, y == 3], 1).float()
    share = 1 / C
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert measured([(x, y)]).numpy() == close([0.0, entropy])
    assert (measured([(x, y)]) >= 0).all()


def test_before_any_image_and_with_one_class_nothing_is_defined() -> None:
    assert measured([(activations()[:0], labels()[:0])]).isnan().all()
    assert measured([(activations(), labels() * 0)]).isnan().all()


def test_half_activations_meet_a_threshold_that_is_not_rounded() -> None:
    metric = ClassInformation(1, 2, threshold=1.001)
    torch.nn.ModuleList([metric]).bfloat16()
    metric.update(torch.tensor([[1.0], [1.0078125]]).bfloat16(), torch.tensor([0, 1]))
    assert metric.fired.flatten().tolist() == [0, 1]
    assert metric.threshold.item() == 1.001


def test_a_collection_keeps_thresholds_apart() -> None:
    bars = {"low": 0.0, "high": 0.5}
    collection = MetricCollection({name: ClassInformation(K, C, threshold=bar) for name, bar in bars.items()})
    collection.update(activations()[:0], labels()[:0])  # the same for both
    collection.update(activations(), labels())
    result = collection.compute()
    assert {name: result[name].tolist() for name in bars} == {
        name: pytest.approx(by_hand(bar).tolist(), rel=1e-9, nan_ok=True) for name, bar in bars.items()
    }


def test_refuses_what_it_cannot_count() -> None:
    with pytest.raises(UserError, match="threshold: of shape"):
        ClassInformation(K, C, threshold=torch.zeros(K + 1))
    with pytest.raises(UserError, match="threshold: nan"):
        ClassInformation(K, C, threshold=math.nan)
    with pytest.raises(UserError, match=f"labels: {C} is none"):
        measured([(activations(), labels() * 0 + C)])
    with pytest.raises(UserError, match="activations: nan in row 0, unit 0"):
        measured([(activations() * math.nan, labels())])


def of_rank(rank: int) -> list[float]:
    return measured(parts_of_rank(rank)).nan_to_num(-1).tolist()


def test_two_ranks_equal_one() -> None:
    assert run_distributed(of_rank) == [measured(batches()).nan_to_num(-1).tolist()] * 2


def test_merged_metrics_equal_the_whole() -> None:
    first, second = (ClassInformation(K, C, threshold=EACH) for _ in range(2))
    for metric, rank in ((first, 0), (second, 1)):
        for part in parts_of_rank(rank):
            metric.update(*part)
    first.merge_state(second)
    assert first.compute().numpy() == close(by_hand(EACH))
    assert first.threshold.equal(EACH.double())


def test_plots() -> None:
    metric = ClassInformation(K, C)
    metric.update(activations(), labels())
    figure, axes = plt.subplots()
    metric.plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)
