"""Label purity describes the labels of top samples, and its null the same samples under permuted labels."""

from collections import Counter

import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from impact_lightning.metrics.label_purity import label_purity, permuted_labels
from impact_lightning.metrics.top_samples import Samples
from impact_lightning.types import UserError

CLASSES = 4


def samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    image = torch.stack([torch.randperm(50, generator=generator)[:12] for _ in range(6)])
    value = torch.rand(6, 12, generator=generator, dtype=torch.float64)
    image[5, 3:], value[5, 3:] = -1, torch.nan  # the last latent fired for three images only
    return Samples(value, image, torch.zeros_like(image))


def labels() -> Tensor:
    return torch.randint(CLASSES, (50,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_a_count_by_hand(weighted: bool) -> None:
    result = label_purity(samples(), labels(), CLASSES, weighted=weighted)
    for latent in range(5):
        mass: Counter[int] = Counter()
        for value, image in zip(samples().value[latent].tolist(), samples().image[latent].tolist(), strict=True):
            mass[int(labels()[image])] += value if weighted else 1
        assert result.entropy[latent].item() == pytest.approx(entropy(list(mass.values())))
        assert result.purity[latent].item() == pytest.approx(max(mass.values()) / mass.total())
        assert mass[int(result.label[latent])] == pytest.approx(max(mass.values()))


def test_a_latent_with_few_samples_has_no_purity() -> None:
    result = label_purity(samples(), labels(), CLASSES)
    assert result.purity.isnan().tolist() == result.entropy.isnan().tolist() == [False] * 5 + [True]
    assert result.label[5] == -1


def test_free_places_do_not_count() -> None:
    image = samples().image[5, :3]
    own = torch.zeros(50, dtype=torch.int64).index_fill(0, image, 3)
    assert label_purity(samples(), own, CLASSES, at_least=3).purity[5] == 1.0


def test_permuted_labels_are_the_same_labels_at_other_images() -> None:
    null = permuted_labels(labels(), seed=3)
    assert null.bincount().equal(labels().bincount())
    assert null.equal(permuted_labels(labels(), seed=3))
    assert not null.equal(labels())


def test_the_null_of_a_pure_latent_is_near_chance() -> None:
    own = torch.arange(4000) % CLASSES
    image = torch.arange(0, 4000, CLASSES)[None]  # every image of label 0
    pure = Samples(torch.ones(1, 1000).double(), image, torch.zeros_like(image))
    assert label_purity(pure, own, CLASSES).purity.item() == 1.0
    assert label_purity(pure, permuted_labels(own), CLASSES).purity.item() < 0.3


def test_refuses_labels_of_other_images() -> None:
    with pytest.raises(UserError, match="10 labels"):
        label_purity(samples(), labels()[:10], CLASSES)
