"""A study of units is the slow truth, in any batches and on any number of ranks, and finds what was planted."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from impact_lightning.metrics.auroc import expected_null_std
from impact_lightning.neurons.findings import findings
from impact_lightning.neurons.layers import find_layers
from impact_lightning.neurons.measures import Measures
from impact_lightning.neurons.null import Labels, other_classes
from impact_lightning.neurons.settings import Settings
from impact_lightning.neurons.study import Study
from impact_lightning.types import ImageBatch, UserError
from tests.distributed import run_distributed
from tests.neurons import brute
from tests.neurons.tiny import images, vit

N, N_CLASSES = 30, 6  # five images of each class but for one of the last but one, and none of the last
SETTINGS = Settings(top_neurons=5, top_heads=1, impact_images=3, k=7, bins=128, calibration=N, shown=7)
SILENT, CONSTANT = 3, 4  # neurons of the first block


def model_of(activation: str = "gelu") -> Any:
    """Return a model with a silent and a constant neuron."""
    model: Any = vit()
    if activation == "relu":
        brute.with_relu(model)  # half of the activations are the same
    torch.manual_seed(1)
    model.head = nn.Linear(8, N_CLASSES).double().requires_grad_(False)
    fc1 = model.blocks[0].mlp.fc1
    fc1.weight[SILENT : CONSTANT + 1] = 0
    fc1.bias[SILENT], fc1.bias[CONSTANT] = 0, 1
    return model


def labels_of(seed: int = 0) -> Tensor:
    labels = torch.arange(N) % 4
    labels[11] = 4
    return labels[torch.randperm(N, generator=torch.Generator().manual_seed(seed))]


def study_of(model: Any, labels: Tensor, settings: Settings = SETTINGS, n_classes: int = N_CLASSES) -> Study:
    layers = find_layers(model, None, ["head", "neuron"])
    return Study("model", model, layers, Labels(labels, 0), n_classes, settings, 0)


def batches_of(pictures: Tensor, labels: Tensor, rows: Sequence[Tensor]) -> list[ImageBatch]:
    return [ImageBatch(pictures[part], labels[part], part) for part in rows]


def conducted(study: Study, batches: Sequence[ImageBatch], sample: Sequence[ImageBatch] | None = None) -> Measures:
    """Return what a study finds."""
    for batch in batches if sample is None else sample:
        study.sample(batch)
    study.draw_bins()
    with study.looking() as look:
        for batch in batches:
            look(batch)
    study.choose()
    with study.looking_again() as look_again:
        for batch in batches:
            look_again(batch)
    return study.conclude()


def found_in(rows: Sequence[Tensor], activation: str = "gelu", settings: Settings = SETTINGS) -> Measures:
    (pictures, _), labels = images(N), labels_of()
    return conducted(study_of(model_of(activation), labels, settings), batches_of(pictures, labels, rows))


def truth_of(activation: str, settings: Settings = SETTINGS) -> brute.Study:
    (pictures, _), labels, model = images(N), labels_of(), model_of(activation)
    study = study_of(model, labels, settings)
    return brute.Study(
        model=model,
        images=pictures,
        labels=labels.numpy(),
        permuted=study.labels.permuted.numpy(),
        other=other_classes(N_CLASSES, labels.unique(), 0).numpy(),
        pooling=settings.pooling,
        top={"head": settings.top_heads, "neuron": settings.top_neurons},
        support=settings.ranking == "support",
        impact_images=settings.impact_images,
        k=settings.k,
    )


def assert_same(found: Measures, expected: Measures, tolerance: float) -> None:
    assert found.by_name.keys() == expected.by_name.keys()
    for name, measure in expected.by_name.items():
        mine = found.by_name[name]
        for ours, theirs in ((mine.values, measure.values), (mine.null, measure.null)):
            if theirs is not None:
                torch.testing.assert_close(
                    ours,
                    theirs,
                    rtol=tolerance,
                    atol=tolerance,
                    equal_nan=True,
                    msg=partial("{}: {}".format, name),
                )
    for mine_exact, theirs_exact in (
        (found.preferred, expected.preferred),
        (found.auroc.auroc, expected.auroc.auroc),
        (found.auroc.images, expected.auroc.images),
        (found.top.images, expected.top.images),
        (found.top.best, expected.top.best),
        *zip(found.own, expected.own, strict=True),
    ):
        torch.testing.assert_close(mine_exact, theirs_exact, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-7, equal_nan=True)  # in float32
    assert found.images == expected.images


# ------------------------------------------------------------------------------------------------------- the truth


@pytest.mark.parametrize(
    ("activation", "pooling", "ranking"),
    [
        ("gelu", "cls", "abs"),
        ("relu", "cls", "support"),
        ("relu", "patch_max", "abs"),
        ("gelu", "patch_mean", "support"),
    ],
)
def test_every_measure_and_null_is_the_slow_truth(activation: str, pooling: Any, ranking: Any) -> None:
    settings = replace(SETTINGS, pooling=pooling, ranking=ranking)
    found = found_in(torch.arange(N).split(7), activation, settings)
    expected = brute.truth(truth_of(activation, settings))
    assert found.by_name.keys() == expected.keys()
    assert torch.equal(found.auroc.certificate, torch.zeros(68, dtype=torch.float64))  # each value has its own bin
    for name, measure in found.by_name.items():
        np.testing.assert_allclose(measure.values, expected[name].values, rtol=1e-9, atol=1e-9, err_msg=name)
        null = expected[name].null
        assert (measure.null is None) == (null is None)
        if measure.null is not None and null is not None:
            mine = measure.null.numpy().copy()
            if name == "ablation_impact":  # see test_the_null_of_an_impact_never_ablates_nothing
                mine[np.isnan(null)] = np.nan
            np.testing.assert_allclose(mine, null, rtol=1e-9, atol=1e-9, err_msg=f"null of {name}")


def test_tables_of_classes_and_units_are_the_slow_truth() -> None:
    study, found = truth_of("gelu"), found_in(torch.arange(N).split(7))
    x, scores = brute.pooled(study, "cls"), brute.attributions(study)
    np.testing.assert_allclose(found.auroc.auroc, brute.table(brute.auroc, x, study.labels, N_CLASSES), atol=1e-12)
    np.testing.assert_allclose(found.scores, scores.astype(np.float32), rtol=1e-5, atol=1e-9)
    assert found.preferred.tolist() == brute.preferred(x, study.labels)
    own = [[units or [-1] * len(by_class[0]) for units in by_class] for by_class in brute.own_units(study, scores)]
    assert [units.tolist() for units in found.own] == own
    assert found.images == N


def test_scores_are_slopes_that_need_no_gradient() -> None:
    study, found = truth_of("gelu"), found_in(torch.arange(N).split(7))
    columns = [(site, unit) for site in brute.sites(study.model) for unit in range(site.n)]
    for column in (0, 1, 2, 17, 34, 35, 60):
        slopes = brute.slopes_by_five_points(study, *columns[column])
        np.testing.assert_allclose(found.scores[:, column], slopes, rtol=1e-6, atol=1e-8)  # float32


def test_units_that_never_change_have_no_selectivity() -> None:
    found = found_in(torch.arange(N).split(7))
    silent, constant = 2 + SILENT, 2 + CONSTANT  # after the heads
    undefined = {name for name, m in found.by_name.items() if m.is_of_units and m.values[silent].isnan()}
    assert {"class_selectivity", "d_prime_best", "eta_squared", "class_information", "informedness"} <= undefined
    assert found.preferred[silent] == -1
    assert found.by_name["dead"].values[silent] == 1
    assert found.by_name["auroc_best"].values[[silent, constant]].tolist() == [0.5, 0.5]
    assert found.by_name["d_prime_best"].values[constant].isnan()
    assert found.by_name["kurtosis"].values[constant].isnan()
    assert found.scores[:5, [silent, constant]].abs().max() < 1e-15  # rounding alone


def test_a_class_without_images_has_no_numbers() -> None:
    found = found_in(torch.arange(N).split(7))
    for measure in found.by_name.values():
        if not measure.is_of_units:
            assert measure.values[5].isnan().all()
            assert measure.values[:4].isfinite().all()
    assert found.auroc.auroc[5].isnan().all()
    assert found.scores[5].isnan().all()
    assert all((own[5] == -1).all() for own in found.own)


def test_the_null_of_an_impact_never_ablates_nothing() -> None:
    null = found_in(torch.arange(N).split(7)).by_name["ablation_impact"].null
    assert null is not None
    assert not (null[:5] == 0).any()  # also where the class whose units are taken has no images


def test_coarse_bins_are_wrong_by_no_more_than_they_say() -> None:
    exact = found_in(torch.arange(N).split(7))
    coarse = found_in(torch.arange(N).split(7), settings=replace(SETTINGS, bins=8))
    error = (coarse.auroc.auroc - exact.auroc.auroc).abs()[:5]
    assert error.max() > 0
    assert (error <= coarse.auroc.certificate + 1e-12).all()
    for name in ("class_variance", "label_entropy", "precision_at_k", "eta_squared", "kurtosis"):  # know of no bins
        torch.testing.assert_close(
            coarse.by_name[name].values, exact.by_name[name].values, rtol=1e-12, atol=1e-12, equal_nan=True
        )


def test_bins_of_a_few_images_only_cost_precision() -> None:
    (pictures, _), labels = images(N), labels_of()
    batches = batches_of(pictures, labels, torch.arange(N).split(7))
    study = study_of(model_of(), labels)
    found = conducted(study, batches, sample=batches[:1])
    exact = found_in(torch.arange(N).split(7))
    error = (found.auroc.auroc - exact.auroc.auroc).abs()[:5]
    assert (error <= found.auroc.certificate + 1e-12).all()
    assert torch.equal(found.preferred, exact.preferred)


def test_nulls_of_some_units_are_those_that_they_have_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(N).split(7)
    every = found_in(rows)
    monkeypatch.setattr("impact_lightning.neurons.null.MOST", 20)
    some = found_in(rows)
    assert len(some.null_units) < len(every.null_units) == 68
    for name, measure in some.by_name.items():
        full = every.by_name[name]
        torch.testing.assert_close(measure.values, full.values, rtol=0, atol=0, equal_nan=True)
        if measure.null is not None and full.null is not None:
            expected = full.null[some.null_units] if measure.is_of_units and full.null.ndim else full.null
            torch.testing.assert_close(measure.null, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_every_layer_has_a_null_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a ViT-B too, where a layer has 12 heads among 37,008 units."""
    monkeypatch.setattr("impact_lightning.neurons.null.MOST", 12)
    found = found_in(torch.arange(N).split(7))
    nulls = {(f.of, f.measure): f.null.value for f in findings(found, seed=0) if f.null is not None}
    assert not [key for key, value in nulls.items() if math.isnan(value)]


# --------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("size", [1, 11, N])
def test_batches_of_any_size_give_the_same_numbers(size: int) -> None:
    assert_same(found_in(torch.arange(N).split(size), "relu"), found_in(torch.arange(N).split(7), "relu"), 1e-10)


def test_batches_in_any_order_give_the_same_numbers() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    assert_same(found_in(order.split(4), "relu"), found_in(torch.arange(N).split(7), "relu"), 1e-10)


def test_a_model_is_left_as_it_was() -> None:
    (pictures, _), labels, model = images(N), labels_of(), model_of()
    before = model(pictures)
    conducted(study_of(model, labels), batches_of(pictures, labels, torch.arange(N).split(7)))
    assert torch.equal(model(pictures), before)
    assert not any(block.mlp.act._forward_hooks for block in model.blocks)
    assert "forward" not in vars(model)


def test_nothing_to_read_is_named() -> None:
    with pytest.raises(UserError, match="none of the images can be read"):
        study_of(model_of(), labels_of()).draw_bins()


# ----------------------------------------------------------------------------------------------------------- ranks


def of_rank(rank: int, parts: list[list[Tensor]]) -> tuple[Any, ...]:
    """Return what a rank finds, as plain values."""
    found = found_in(parts[rank])
    floats = {
        name: (m.values.tolist(), None if m.null is None else m.null.tolist()) for name, m in found.by_name.items()
    }
    exact = found.auroc.auroc, found.auroc.images, found.auroc.widest, found.preferred, found.top.images, *found.own
    return floats, [part.tolist() for part in exact], found.images, found.scores.tolist()


@pytest.mark.parametrize("share", [0, 1, 4])  # batches of the second rank
def test_two_ranks_find_what_one_finds(share: int) -> None:
    batches = list(torch.arange(N).split(7))
    expected = found_in(batches)
    parts = [batches[share:], batches[:share]]
    first, second = run_distributed(of_rank, parts)
    np.testing.assert_equal(first, second)  # nan is nan
    floats, exact, n, scores = first
    assert n == N
    theirs = expected.auroc.auroc, expected.auroc.images, expected.auroc.widest
    for mine, other in zip(exact, [*theirs, expected.preferred, expected.top.images, *expected.own], strict=True):
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-6, atol=1e-8)  # float32
    for name, measure in expected.by_name.items():
        values, null = floats[name]
        np.testing.assert_allclose(values, measure.values, rtol=1e-10, atol=1e-10, err_msg=name)
        if measure.null is not None:
            np.testing.assert_allclose(null, measure.null, rtol=1e-10, atol=1e-10, err_msg=name)


# --------------------------------------------------------------------------------------------------- planted truth


PLANTED, NEURON, HEAD = 1, 5, 1  # a class, and the units that are made its detectors


def offset_images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noise in which a class has more of one channel."""
    generator = torch.Generator().manual_seed(seed)
    pictures = 0.3 * torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (n,), generator=generator)
    pictures[labels == PLANTED, 0] += 1.0
    return pictures, labels


def seen(model: Any, module: nn.Module, pictures: Tensor) -> Tensor:
    """Return what a module writes."""
    kept: list[Tensor] = []
    hook = module.register_forward_hook(lambda _, _args, out: kept.append(out))
    model(pictures)
    hook.remove()
    return kept[0]


def direction_to(model: Any, block: Any, pictures: Tensor, signal: Tensor) -> Tensor:
    """Return what to write with a signal `(n, T)`, after a block, for the logit of the class to rise, `(D,)`."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, _args: Any, out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[0]

    hook = block.register_forward_hook(keep)
    logits = model(pictures)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, PLANTED].sum(), kept[0])
    direction = (signal[:, :, None] * gradient).sum((0, 1))
    unit: Tensor = direction / direction.norm()
    return unit


def detector(x: Tensor, is_class: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and bias with which rows `(N, D)` of a class give 1 and others 0, by least squares."""
    ones = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    solution = torch.linalg.lstsq(ones, is_class.double()[:, None]).solution.flatten()
    return solution[:-1], solution[-1]


def planted_model() -> Any:
    """Return a model in whose middle block a neuron and a head detect the class and write for it."""
    model: Any = vit(depth=3)
    pictures, labels = offset_images(300, seed=1)
    block = model.blocks[1]
    attention, mlp = block.attn, block.mlp
    width = attention.head_dim
    at = slice(HEAD * width, (HEAD + 1) * width)

    attention.qkv.weight[:16], attention.qkv.bias[:16] = 0, 0  # every token looks at all alike
    tokens = seen(model, block.norm1, pictures).mean(1)
    weight, bias = detector(tokens, labels == PLANTED)
    attention.qkv.weight[16:][at], attention.qkv.bias[16:][at] = 0, 0
    attention.qkv.weight[16:][at.start], attention.qkv.bias[16:][at.start] = weight, bias
    of_class = labels == PLANTED
    attention.proj.weight[:, at] = 0
    everywhere = torch.ones(int(of_class.sum()), 5, dtype=torch.float64)
    attention.proj.weight[:, at.start] = 3 * direction_to(model, block, pictures[of_class], everywhere)

    weight, bias = detector(seen(model, block.norm2, pictures)[:, 0], of_class)
    mlp.fc1.weight[NEURON], mlp.fc1.bias[NEURON] = 6 * weight, 6 * bias - 3
    fires = seen(model, mlp.act, pictures)[:, :, NEURON]
    mlp.fc2.weight[:, NEURON] = 0
    mlp.fc2.weight[:, NEURON] = direction_to(model, block, pictures[of_class], (fires - fires.mean())[of_class])
    return model


@pytest.fixture(scope="module")
def planted() -> tuple[Measures, Measures]:
    """Return what is found with labels, and with labels that were shuffled."""
    model, (pictures, labels) = planted_model(), offset_images(240, seed=2)
    shuffled = labels[torch.randperm(240, generator=torch.Generator().manual_seed(0))]
    settings = Settings(top_neurons=3, top_heads=1, impact_images=20, k=20)
    found = [
        conducted(study_of(model, given, settings, 3), batches_of(pictures, given, torch.arange(240).split(64)))
        for given in (labels, shuffled)
    ]
    return found[0], found[1]


PLACES = {"head": (2, HEAD), "neuron": (3, NEURON)}  # layers of block 1


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_a_planted_detector_ranks_first(kind: str, planted: tuple[Measures, Measures]) -> None:
    found, (place, unit) = planted[0], PLACES[kind]
    layer = found.layers[place]
    assert str(layer) == f"blocks.1.{kind}s"
    assert found.own[place][PLANTED, 0] == unit
    auroc = found.auroc.auroc[PLANTED, layer.of_units]
    assert auroc[unit] > 0.99
    assert auroc.argmax() == unit
    assert found.preferred[layer.units + unit] == PLANTED
    assert found.scores[PLANTED, layer.units + unit] < 0  # the class is lost without it
    assert found.by_name["informedness"].values[layer.units + unit] > 0.9
    assert found.by_name["precision_at_k"].values[layer.units + unit] == 1


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_a_class_needs_its_planted_detector(kind: str, planted: tuple[Measures, Measures]) -> None:
    impact = planted[0].by_name["ablation_impact"]
    place, _ = PLACES[kind]
    assert impact.null is not None
    assert impact.values[PLANTED, place] > 0.1
    if kind == "neuron":  # of two heads another class has the same one
        assert impact.values[PLANTED, place] > impact.null[PLANTED, place] + 0.1


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_a_planted_detector_of_shuffled_labels_is_within_its_null(
    kind: str, planted: tuple[Measures, Measures]
) -> None:
    shuffled, (place, unit) = planted[1], PLACES[kind]
    auroc = shuffled.auroc.auroc[:, shuffled.layers[place].units + unit]
    spread = expected_null_std(torch.tensor(240), shuffled.auroc.images)
    assert ((auroc - 0.5).abs() < 4 * spread).all()
