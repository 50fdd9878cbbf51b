"""What `test` of LitSAE reports equals a literal computation, on one rank and on two, each number beside its null."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from impact_lightning import cli
from impact_lightning.activations import LiveActivations
from impact_lightning.backbones import Backbone, patch
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.results import Record, read_results
from impact_lightning.sae import BatchTopK
from impact_lightning.sae.dictionary import Dictionary
from impact_lightning.sae.features import Description, Features, read_features
from impact_lightning.types import UserError
from tests.training.test_resume import in_a_process, on_two_ranks

CONFIG = Path(__file__).parents[1] / "conf" / "sae.yaml"
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
OTHER = {"img_size": 24, "embed_dim": 12, "depth": 1}  # an image encoder for other sizes
SITE, NAME = "blocks.0.resid_post", "blocks.0.resid_post/0-BatchTopK-x2-s0"
TOKENS, N = 5, 48


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    vit = Backbone("vit_tiny_patch16_224", model_args={**SMALL}, num_classes=4).build()
    with torch.no_grad():
        vit.head.weight.mul_(40)  # type: ignore[operator]  # so that predictions differ, and there is something to recover
    save_file(vit.state_dict(), path)
    other = Backbone("vit_tiny_patch16_224", model_args={**SMALL, **OTHER}, num_classes=4).build()
    save_file(other.state_dict(), path.with_name("other.safetensors"))
    return path


def words(run: Path, weights: Path) -> list[str]:
    given = [f"--config={CONFIG}", f"--dir={run}", "--ckpt_path=last", f"--data.backbone.weights={weights}"]
    other = weights.with_name("other.safetensors")
    embedding = {"name": "vit_tiny_patch16_224", "weights": str(other), "model_args": {**SMALL, **OTHER}}
    return [*given, f"--data.data.n_test={N}", f"--model.embedding={json.dumps({**embedding, 'num_classes': 4})}"]


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    run = tmp_path_factory.mktemp("tested")

    def fit_and_test() -> None:
        cli.main(["fit", *words(run, weights)])
        cli.main(["test", *words(run, weights)])

    assert in_a_process(fit_and_test) == 0
    return run


@pytest.fixture(scope="module")
def records(tested: Path) -> dict[str, Record]:
    return {record.measure: record for record in read_results(tested / "results.json") if record.of == NAME}


@pytest.fixture(scope="module")
def features(tested: Path) -> tuple[Features, Description]:
    return read_features(tested / "features" / NAME)


class Literal:
    """All rows of the test split, the dictionary, and what the model predicts."""

    def __init__(self, run: Path, weights: Path) -> None:
        self.data = LiveActivations(
            backbone=Backbone("vit_tiny_patch16_224", weights=weights, num_classes=4, model_args={**SMALL}),
            data=SceneData(Rooms(size=16), label=["shape"], n_train=64, n_val=16, n_test=N),
            sites=["blocks.*.resid_post"],
            image_batch_size=8,
            buffer_images=16,
        )
        batches = list(self.data.test_dataloader())
        self.x = torch.cat([batch.activations[SITE] for batch in batches])  # (N·T, D)
        self.labels = torch.cat([batch.label for batch in batches])[::TOKENS]
        self.pixels = torch.cat([batch.pixels for batch in batches if batch.pixels is not None])
        content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        prefix = f"dictionaries.{NAME.replace('.', '_')}."
        self.dictionary = Dictionary(BatchTopK(24, 48, k=3), SITE, None, {SITE: 24}).eval()
        self.dictionary.load_state_dict({k.removeprefix(prefix): v for k, v in content.items() if k.startswith(prefix)})
        found = self.dictionary.infer({SITE: self.x})
        self.codes, self.output = found.codes.view(N, TOKENS, 48), found.output

    def logits(self, rows: Tensor | None) -> Tensor:
        edits = {} if rows is None else {SITE: lambda _: rows.view(N, TOKENS, 24)}
        with torch.no_grad(), patch(self.data.frozen.model, edits):
            logits: Tensor = self.data.frozen.model(self.pixels)
        return logits.double()


@pytest.fixture(scope="module")
def literal(tested: Path, weights: Path) -> Literal:
    return Literal(tested, weights)


def test_reconstruction(records: dict[str, Record], literal: Literal) -> None:
    x, output = literal.x.double(), literal.output.double()
    error, variance = (x - output).square().sum(), (x - x.mean(0)).square().sum()
    assert records["fvu"].value == pytest.approx(float(error / variance), rel=1e-9)
    assert records["nmse_origin"].value == pytest.approx(float(error / x.square().sum()), rel=1e-9)
    null = records["nmse_origin"].null
    assert null is not None
    assert null.value == pytest.approx(float(variance / x.square().sum()), rel=1e-9)
    assert records["cosine"].value == pytest.approx(float(F.cosine_similarity(x, output).mean()), rel=1e-9)
    assert records["l0"].value == pytest.approx(float((literal.codes > 0).sum(2).double().mean()))
    assert records["l0"].n == N * TOKENS


def test_intervals_of_the_reconstruction_hold_the_value(records: dict[str, Record]) -> None:
    for name in ("fvu", "ev", "nmse_origin", "cosine", "l0"):
        interval = records[name].interval
        assert interval is not None
        assert interval.low < records[name].value < interval.high


def test_what_the_model_recovers(records: dict[str, Record], literal: Literal) -> None:
    mean = literal.dictionary.scaling.mean.expand(N * TOKENS, -1)
    models = [literal.logits(rows) for rows in (None, literal.output, mean, torch.zeros(N * TOKENS, 24))]
    clean, spliced, meaned, ablated = (float(F.cross_entropy(logits, literal.labels)) for logits in models)
    record = records["loss_recovered"]
    assert record.value == pytest.approx((ablated - spliced) / (ablated - clean), rel=1e-5)
    assert record.null is not None
    assert record.null.value == pytest.approx((ablated - meaned) / (ablated - clean), rel=1e-5)
    assert record.n == N
    top1 = [float((logits.argmax(1) == literal.labels).double().mean()) for logits in models]
    assert records["top1_difference"].value == pytest.approx(top1[1] - top1[0])
    target = models[0].log_softmax(1)
    kl = [float(F.kl_div(x.log_softmax(1), target, log_target=True, reduction="batchmean")) for x in models]
    assert records["kl"].value == pytest.approx(kl[1], rel=1e-4)
    assert records["kl_recovered"].value == pytest.approx(1 - kl[1] / kl[3], rel=1e-5)


def test_features_are_those_of_the_codes(features: tuple[Features, Description], literal: Literal) -> None:
    found, about = features
    codes = literal.codes  # (N, T, F)
    torch.testing.assert_close(found.density, (codes > 0).double().mean((0, 1)))
    assert torch.equal(found.active[:30], torch.bincount((codes > 0).sum(2).flatten(), minlength=49)[:30])
    for latent in range(codes.shape[2]):
        peaks = codes[..., latent].amax(1)
        best = sorted((i for i in range(N) if peaks[i] > 0), key=lambda i: (-float(peaks[i]), i))[:16]
        assert [i for i in found.image[latent].tolist() if i >= 0] == best
        for place, image in enumerate(best):
            torch.testing.assert_close(found.map[latent, place], codes[image, :, latent].half())
        counts = torch.bincount(literal.labels[peaks > 0], minlength=4)
        assert torch.equal(found.class_counts[latent], counts)
    assert about.tokens == list(range(TOKENS))
    assert about.n_prefix == 1
    assert about.site == SITE


def test_meaning(records: dict[str, Record], features: tuple[Features, Description], literal: Literal) -> None:
    purities, scores = [], []
    peaks = literal.codes.amax(1).double()  # (N, F)
    same = (literal.labels[:, None] == literal.labels[None]).double()
    for latent in range(48):
        best = [i for i in features[0].image[latent].tolist() if i >= 0]
        if len(best) >= 10:
            purities.append(int(torch.bincount(literal.labels[best]).max()) / len(best))
        a = peaks[:, latent]
        if a.max() > a.min():
            a = (a - a.min()) / (a.max() - a.min())
            weight = torch.outer(a, a).fill_diagonal_(0)
            if weight.sum() > 0:
                scores.append(float((weight * same).sum() / weight.sum()))
    assert records["purity"].value == pytest.approx(sum(purities) / len(purities), rel=1e-9)
    assert records["purity"].n == len(purities)
    assert records["label_monosemanticity"].value == pytest.approx(sum(scores) / len(scores), rel=1e-9)
    null = records["label_monosemanticity"].null
    assert null is not None
    assert null.value == pytest.approx(float(same.fill_diagonal_(0).sum()) / (N * (N - 1)), rel=1e-9)


def test_every_number_that_needs_one_has_a_null(records: dict[str, Record]) -> None:
    alone = {name for name, record in records.items() if record.null is None}
    assert alone == {"cosine", "bias", "l0", "dead", "ultra_low"}
    assert "monosemanticity" in records  # of the embedding
    assert "embedding" in records["monosemanticity"].protocol


def test_seeds_are_compared(tested: Path) -> None:
    found = {r.of for r in read_results(tested / "results.json") if r.measure == "pw_mcc"}
    assert found == {
        f"blocks.{block}.resid_post/{kind}-x2-s0~s1" for block in (0, 1) for kind in ("0-BatchTopK", "1-ReLU")
    }


def test_two_ranks_find_what_one_finds(tested: Path, weights: Path, tmp_path: Path) -> None:
    one = {(r.measure, r.of): r for r in read_results(tested / "results.json")}
    again = [
        word.replace("--ckpt_path=last", f"--ckpt_path={tested}/checkpoints/last.ckpt")
        for word in words(tmp_path, weights)
    ]
    on_two_ranks(lambda: cli.main(["test", *again, "--trainer.devices=2"]))
    for record in read_results(tmp_path / "results.json"):
        first = one[record.measure, record.of]
        assert record.value == pytest.approx(first.value, rel=1e-6, nan_ok=True), record.measure
        assert record.n == first.n
        if record.interval and first.interval:
            assert record.interval.low == pytest.approx(first.interval.low, rel=1e-6), record.measure
    ours, theirs = read_features(tmp_path / "features" / NAME)[0], read_features(tested / "features" / NAME)[0]
    assert torch.equal(ours.image, theirs.image)
    assert torch.equal(ours.map, theirs.map)


def test_predictions_of_other_classes_than_those_of_the_data_are_not_compared(
    tested: Path, weights: Path, tmp_path: Path
) -> None:
    last = tested / "checkpoints" / "last.ckpt"
    more = (f"--ckpt_path={last}", "--data.data.label=[floor_hue]")
    assert in_a_process(lambda: cli.main(["test", *words(tmp_path, weights), *more])) == 0
    records = [record for record in read_results(tmp_path / "results.json") if record.of == NAME]
    assert "loss_recovered" not in {record.measure for record in records}
    assert all("predicts 4 classes, and the data has 10" in record.notes[0] for record in records)


def test_a_damaged_file_of_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_features(tmp_path)
    (tmp_path / "features.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UserError, match="cannot be read"):
        read_features(tmp_path)
    save_file({"density": torch.ones(1)}, tmp_path / "features.safetensors", {"schema": json.dumps(1)})
    with pytest.raises(UserError, match="not written by this version"):
        read_features(tmp_path)
