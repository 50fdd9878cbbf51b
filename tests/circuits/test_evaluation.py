"""Scores of circuits are those of gates by hand, whatever the circuits are run as."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.circuits.evaluation import COMPACT, Evaluation, Scores
from impact_lightning.circuits.gated import gating
from impact_lightning.circuits.means import Baseline
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.resampling import Donor, Resampled, donors
from impact_lightning.circuits.tasks import Images, Task, judge
from tests.circuits.test_fold import KINDS, vit
from tests.circuits.test_resampling import literal_resampled

TASKS = [Task("rest", (2,)), Task("pair", (0, 4)), Task("among", (1, 3, 4)), Task("kl")]


class Held:
    """Images in memory that are no data's: what `Evaluation` looks at."""

    def __init__(self, n: int = 11, *, alike: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(n, 3, 16, 16, dtype=torch.float64, generator=generator)
        self.images = []
        for task, count in zip(TASKS, (10, 6, 9, n) if alike else (9, 6, 8, n), strict=True):
            sides = {"among": 3, "kl": 5}.get(task.readout, 2)
            places = torch.randperm(n, generator=generator)[:count]
            self.images.append(
                Images(places, torch.arange(count) % sides if alike else torch.arange(count) * 2 % 3 % sides)
            )

    def __getitem__(self, places: Tensor) -> Tensor:
        """Return images by place."""
        return self.pixels[places]


def evaluation(model: Any, nodes: Nodes, batch_size: int = 256) -> Evaluation:
    held: Any = Held()
    return Evaluation(model, nodes, TASKS, held, batch_size)


def masks_of(nodes: Nodes, density: float) -> Tensor:
    return torch.rand(len(TASKS), nodes.n, generator=torch.Generator().manual_seed(3)) < density


def by_hand(model: Any, nodes: Nodes, mask: Tensor, p: int, constants: Tensor, *, alike: bool = False) -> list[Any]:
    """Return the scores of a circuit by gates, image by image."""
    held = Held(alike=alike)
    with gating(model, nodes) as gated:
        rows = [gated(held[at[None]], mask[None].double(), Baseline(constants, nodes)) for at in held.images[p].rows]
    return scores_of(model, p, torch.cat(rows), alike=alike)


def scores_of(model: Any, p: int, z: Tensor, *, alike: bool = False) -> list[Any]:
    """Return the scores of the logits of all images of a task, and the loss of each image."""
    held = Held(alike=alike)
    places, targets = held.images[p]
    full = model(held[places])
    judged = judge(TASKS[p], z, targets, full)
    sides = [0] if TASKS[p].readout == "kl" else sorted({int(t) for t in targets})
    of = torch.zeros_like(targets) if TASKS[p].readout == "kl" else targets
    loss = sum(float(judged.loss[of == side].mean()) for side in sides) / len(sides)
    accuracy = sum(float(judged.correct[of == side].double().mean()) for side in sides) / len(sides)
    model_p, own_p = full.softmax(1), z.softmax(1)
    divergence = float((model_p * (model_p / own_p).log()).sum(1).mean())
    agreement = float((z.argmax(1) == full.argmax(1)).double().mean())
    shares = [len(of) / (len(sides) * int((of == side).sum())) for side in of]  # images of a small side weigh more
    weights = torch.tensor(shares, dtype=torch.float64)
    return [loss, accuracy, float(judged.margin.mean()), divergence, agreement, len(targets), judged.loss * weights]


def assert_scores(found: Scores, expected: list[list[Any]]) -> None:
    for name, values in zip(found._fields, zip(*expected, strict=True), strict=True):
        column: Any = getattr(found, name)
        if name == "losses":
            for own, hand in zip(column, values, strict=True):
                torch.testing.assert_close(own, hand, rtol=1e-9, atol=1e-9)
        else:
            assert isinstance(column, Tensor)
            wanted = torch.tensor(values, dtype=torch.float64)
            torch.testing.assert_close(column.double(), wanted, rtol=1e-9, atol=1e-9, msg=name)


def rows_of(scores: Scores) -> list[list[Any]]:
    """Return what is known of each circuit."""
    return [list(row) for row in zip(*scores, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("density", "how"), [(0.4, "compact"), (0.9, "folded")])
def test_scores_are_those_of_gates(kind: str, density: float, how: str) -> None:
    model = vit(kind)
    nodes = Nodes(model)
    masks, mu = masks_of(nodes, density), torch.randn(1, nodes.n, dtype=torch.float64)
    assert (density < COMPACT) == (how == "compact")
    found = evaluation(model, nodes)(masks, range(4), mu)
    assert_scores(found, [by_hand(model, nodes, masks[p], p, mu) for p in range(4)])
    assert found.images.dtype == torch.int64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.4, 0.9])
def test_scores_with_constants_of_positions_are_those_of_gates(kind: str, density: float) -> None:
    model = vit(kind)
    nodes = Nodes(model)
    tokens = 4 + int(model.num_prefix_tokens)
    masks, mu = masks_of(nodes, density), torch.randn(tokens, nodes.n, dtype=torch.float64)
    found = evaluation(model, nodes)(masks, range(4), mu)
    assert_scores(found, [by_hand(model, nodes, masks[p], p, mu) for p in range(4)])


def test_the_mean_of_the_losses_of_images_is_the_loss_and_images_of_a_small_side_weigh_more() -> None:
    model = vit()
    nodes = Nodes(model)
    run, masks, mu = evaluation(model, nodes), masks_of(nodes, 0.5), torch.zeros(1, nodes.n, dtype=torch.float64)
    for found in (run(masks, range(4), mu), run.whole):
        for p, losses in enumerate(found.losses):
            assert float(losses.mean()) == pytest.approx(float(found.loss[p]), rel=1e-12, abs=1e-12)
    targets = Held().images[0].targets
    assert targets.bincount().tolist() == [6, 3]
    logits = model(Held()[Held().images[0].rows])
    plain = judge(TASKS[0], logits, targets, logits).loss
    torch.testing.assert_close(run.whole.losses[0], torch.where(targets == 0, plain * 9 / 12, plain * 9 / 6))


def test_the_whole_model_is_looked_at_once() -> None:
    model = vit()
    one = evaluation(model, Nodes(model))
    assert one.whole is one.whole


def test_circuits_have_tasks_in_any_order_and_more_than_once() -> None:
    model = vit()
    nodes = Nodes(model)
    mu, masks = torch.randn(1, nodes.n, dtype=torch.float64), masks_of(nodes, 0.5)
    found = evaluation(model, nodes)(masks, [3, 0, 0, 1], mu)
    assert_scores(found, [by_hand(model, nodes, masks[r], p, mu) for r, p in enumerate([3, 0, 0, 1])])


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("density", [0.4, 0.9])
def test_each_circuit_can_have_constants_of_its_own(density: float, tokens: int) -> None:
    model = vit()
    nodes = Nodes(model)
    masks, mu = masks_of(nodes, density), torch.randn(4, tokens, nodes.n, dtype=torch.float64)
    found = evaluation(model, nodes)(masks, [2, 0, 0, 3], mu)
    assert_scores(found, [by_hand(model, nodes, masks[r], p, mu[r]) for r, p in enumerate([2, 0, 0, 3])])


@pytest.mark.parametrize("donor", ["any", "same", "other"])
@pytest.mark.parametrize("batch_size", [2, 256])
def test_scores_with_values_of_other_images_are_those_of_their_donors(donor: Donor, batch_size: int) -> None:
    model, held = vit(), Held()
    nodes = Nodes(model)
    masks, how = masks_of(nodes, 0.5), Resampled(donor, 7)
    expected = []
    for p in range(4):
        rows, targets = held.images[p]
        given = rows[donors(targets, how)]
        pairs = zip(rows, given, strict=True)
        z = [literal_resampled(model, nodes, masks[p], held[i[None]], held[j[None]]) for i, j in pairs]
        expected.append(scores_of(model, p, torch.cat(z)))
    assert_scores(evaluation(model, nodes, batch_size)(masks, range(4), how), expected)


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_circuit_of_all_nodes_is_the_whole_model(tokens: int) -> None:
    model = vit()
    nodes = Nodes(model)
    one = evaluation(model, nodes)
    everything = torch.ones(4, nodes.n, dtype=torch.bool)
    found, whole = one(everything, range(4), torch.randn(tokens, nodes.n, dtype=torch.float64)), one.whole
    assert_scores(found, rows_of(whole))
    assert whole.divergence.abs().max() < 1e-12
    assert whole.agreement.tolist() == [1.0] * 4
    assert whole.accuracy[3] == 1


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_empty_circuit_has_one_answer_for_all_images(tokens: int) -> None:
    model = vit()
    nodes = Nodes(model)
    nothing = torch.zeros(2, nodes.n, dtype=torch.bool)
    found = evaluation(model, nodes)(nothing, [0, 1], torch.randn(tokens, nodes.n, dtype=torch.float64))
    assert found.accuracy.tolist() == [0.5, 0.5]  # sides alike, also where images are not


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("density", [0.4, 0.9])
def test_the_batch_size_has_no_part_in_scores(density: float, tokens: int) -> None:
    model = vit()
    nodes = Nodes(model)
    masks, mu = masks_of(nodes, density), torch.randn(tokens, nodes.n, dtype=torch.float64)
    found, expected = (evaluation(model, nodes, b)(masks, range(4), mu) for b in (2, 256))
    assert_scores(found, rows_of(expected))


def test_evaluating_changes_no_weight_and_leaves_no_gate() -> None:
    model = vit()
    nodes = Nodes(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = Held().pixels
    clean = model(images)
    one = evaluation(model, nodes)
    for tokens, density in ((1, 0.4), (1, 0.9), (5, 0.4)):
        one(masks_of(nodes, density), range(4), torch.randn(tokens, nodes.n, dtype=torch.float64))
    assert torch.equal(model(images), clean)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_divergence_is_from_the_model_to_the_circuit() -> None:
    model = vit()
    nodes = Nodes(model)
    one = evaluation(model, nodes)
    mask, mu = masks_of(nodes, 0.5)[:1], torch.randn(1, nodes.n, dtype=torch.float64)
    found = one(mask, [3], mu)
    assert float(found.loss) == pytest.approx(float(found.divergence), rel=1e-9)
    with gating(model, nodes) as gated:
        z = gated(Held().pixels, mask.double().expand(11, -1), Baseline(mu, nodes))
    p = model(Held().pixels).softmax(1)
    backwards = float(F.kl_div(p.log(), z.log_softmax(1), log_target=True, reduction="none").sum(1).mean())
    assert abs(float(found.divergence) - backwards) > 1e-3
