"""A backbone is built as configured, its weights all fit, and what does not fit is named."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from torch import Tensor, nn

from impact_lightning.backbones import Backbone, fingerprint
from impact_lightning.backbones.backbone import ModelArgs
from tests.backbones import random_images, tiny

SMALL: ModelArgs = {
    "img_size": 24,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "init_values": 0.1,
}
NAME = "deit3_small_patch16_224"


def small(**settings: Any) -> Backbone:
    return Backbone(NAME, **{"model_args": SMALL, **settings})


def test_model_args_shape_the_model() -> None:
    model = small(num_classes=7).build()
    assert len(model.blocks) == 2
    assert model(random_images()).shape == (2, 7)


def test_num_classes_stays_what_the_name_says() -> None:
    assert small().build().num_classes == 1000


def test_a_configuration_is_read_into_a_backbone() -> None:
    parser = ArgumentParser()
    parser.add_argument("--backbone", type=Backbone)
    config = """
        backbone:
          name: vit_tiny_patch16_224
          weights: w.safetensors
          num_classes: 10
          model_args: {depth: 6, init_values: 0.1, qk_norm: true, global_pool: avg, norm_layer: null}
    """
    backbone = parser.instantiate(parser.parse_string(config)).backbone
    model_args: ModelArgs = {"depth": 6, "init_values": 0.1, "qk_norm": True, "global_pool": "avg", "norm_layer": None}
    assert backbone == Backbone("vit_tiny_patch16_224", False, Path("w.safetensors"), False, model_args, 10)
    assert backbone.model_args["qk_norm"] is True  # and not 1


def save_safetensors(weights: dict[str, Tensor], folder: Path) -> Path:
    save_file(weights, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def save_torch(weights: Any, folder: Path, name: str = "weights.pth") -> Path:
    torch.save(weights, folder / name)
    return folder / name


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_weights_return_as_they_were_saved(tmp_path: Path, suffix: str) -> None:
    model = tiny(NAME)
    weights = model.state_dict()
    path = (
        save_safetensors(weights, tmp_path) if suffix == ".safetensors" else save_torch(weights, tmp_path, "w" + suffix)
    )
    assert fingerprint(small(weights=path).build()) == fingerprint(model)


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_weights_beside_an_optimiser_are_found(tmp_path: Path, key: str) -> None:
    model = tiny(NAME)
    path = save_torch({key: model.state_dict(), "optimizer": {}, "epoch": 3}, tmp_path)
    assert fingerprint(small(weights=path).build()) == fingerprint(model)


def test_an_unknown_model_names_the_closest() -> None:
    with pytest.raises(
        ValueError, match="timm has no model 'deit3_smal_patch16_224'; did you mean deit3_small_patch16_224"
    ):
        Backbone("deit3_smal_patch16_224").build()


def test_an_unknown_tag_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot build vit_tiny_patch16_224\.nothing .*Invalid pretrained tag"):
        Backbone("vit_tiny_patch16_224.nothing").build()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"emb_dim": 32}, "no key 'emb_dim'; did you mean embed_dim"),
        ({"num_classes": 3}, "no key 'num_classes': num_classes stands beside model_args"),
        ({"checkpoint_path": "x.pth"}, "no key 'checkpoint_path'"),
        ({"embed_dim": 33}, "cannot build .* dim should be divisible by num_heads"),
        ({"depth": "deep"}, "cannot build .*'depth': 'deep'"),
    ],
)
def test_wrong_model_args_are_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Backbone(NAME, model_args={**SMALL, **args}).build()


def test_an_architecture_without_sites_is_refused() -> None:
    with pytest.raises(ValueError, match="ResNet, and sites are defined for"):
        Backbone("test_resnet").build()


def test_two_sources_of_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="pretrained and weights are both set"):
        small(pretrained=True, weights=Path("w.pth")).build()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.safetensors does not exist"):
        small(weights=tmp_path / "none.safetensors").build()


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.npz").touch()
    with pytest.raises(ValueError, match=r"weights\.npz is none of \.safetensors"):
        small(weights=tmp_path / "weights.npz").build()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("size", [0, 4, 1000])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, size: int) -> None:
    weights = tiny(NAME).state_dict()
    path = save_safetensors(weights, tmp_path) if suffix == ".safetensors" else save_torch(weights, tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        small(weights=path).build()


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:  # noqa: D105
        return (print, ("code from a weights file ran",))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_does_not_run(tmp_path: Path, legacy: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Exploit(), protocol=2)) if legacy else torch.save({"model": Exploit()}, path)
    with pytest.raises(ValueError, match=r"weights\.pth is damaged, or holds more than tensors"):
        small(weights=path).build()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [[1, 2], {"model": {"epoch": 3}}, {"epoch": 3}])
def test_a_file_without_weights_is_named(tmp_path: Path, content: Any) -> None:
    path = save_torch(content, tmp_path)
    with pytest.raises(ValueError, match=r"weights\.pth holds no mapping of names to tensors"):
        small(weights=path).build()


def test_every_misfit_is_counted_and_the_first_are_named(tmp_path: Path) -> None:
    weights = tiny(NAME).state_dict()
    del weights["norm.bias"]
    for i in range(5):
        weights[f"extra.{i}"] = torch.zeros(1)
    weights["cls_token"] = torch.zeros(1, 1, 48)
    message = (
        r"weights\.pth does not fit the model \(1 missing: norm\.bias; "
        r"5 unexpected: extra\.0, extra\.1, extra\.2, \.\.\.; "
        r"1 of another shape: cls_token \(1, 1, 48\) instead of \(1, 1, 32\)\)"
    )
    with pytest.raises(ValueError, match=message):
        small(weights=save_torch(weights, tmp_path)).build()


def test_fingerprints_tell_one_changed_bit() -> None:
    model = tiny()
    before = fingerprint(model)
    with torch.no_grad():
        bias = model.get_parameter("norm.bias")
        bias[0] = torch.nextafter(bias[0], torch.tensor(10.0))
    assert fingerprint(model) != before


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": -torch.zeros(2, 3)},
    ],
)
def test_fingerprints_tell_names_shapes_dtypes_and_bytes(other: dict[str, Tensor]) -> None:
    assert fingerprint(other) != fingerprint({"a": torch.zeros(2, 3)})


def test_fingerprints_depend_on_neither_order_nor_memory_layout() -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.tensor(1.0, dtype=torch.bfloat16)
    assert fingerprint({"a": a, "b": b}) == fingerprint({"b": b, "a": a.T.contiguous().T})


def test_a_fingerprint_is_a_sha256_over_what_the_docstring_says() -> None:
    weights = {"w": torch.tensor([[1.0, 2.0]]), "n": torch.tensor(7)}
    content = b"n torch.int64 ()\n" + struct.pack("<q", 7) + b"w torch.float32 (1, 2)\n" + struct.pack("<2f", 1, 2)
    assert fingerprint(weights) == hashlib.sha256(content).hexdigest()[:16]


def test_a_compiled_model_keeps_its_fingerprint() -> None:
    model = nn.Linear(2, 3)
    compiled: Any = torch.compile(model, backend="eager")
    assert fingerprint(compiled) == fingerprint(model)


def test_a_new_head_begins_anew_and_the_rest_is_loaded(tmp_path: Path) -> None:
    old = small(num_classes=7).build()
    path = save_safetensors(old.state_dict(), tmp_path)
    with pytest.raises(ValueError, match="new_head: true"):
        small(num_classes=3, weights=path).build()
    new = small(num_classes=3, weights=path, new_head=True).build().state_dict()
    assert new["head.weight"].shape[0] == 3
    assert all(torch.equal(new[name], value) for name, value in old.state_dict().items() if "head" not in name)


def test_a_probe_takes_the_place_of_the_head(tmp_path: Path) -> None:
    old = small(num_classes=7).build()
    probe = torch.nn.Linear(old.embed_dim, 3)
    path = save_safetensors(old.state_dict(), tmp_path)
    head = tmp_path / "probe.ckpt"  # as `fit` with train_only: [head] writes it
    torch.save({"state_dict": {f"model.head.{name}": value for name, value in probe.state_dict().items()}}, head)
    new = small(num_classes=3, weights=path, head=head).build().state_dict()
    assert torch.equal(new["head.weight"], probe.weight)
    assert all(torch.equal(new[name], value) for name, value in old.state_dict().items() if "head" not in name)
    with pytest.raises(ValueError, match="trained for other classes"):
        small(num_classes=4, weights=path, head=head).build()
    with pytest.raises(ValueError, match="beside head"):
        small(num_classes=3, head=head).build()
    with pytest.raises(ValueError, match="has no head"):
        small(num_classes=3, weights=path, head=save_torch({"norm.weight": torch.ones(2)}, tmp_path)).build()


def test_layer_scale_is_found_under_the_name_that_deit3_gave_it(tmp_path: Path) -> None:
    scaled = small(model_args={**SMALL, "init_values": 0.5}).build()
    published = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for name, value in scaled.state_dict().items()
    }
    path = save_torch({"model": published}, tmp_path)
    again = small(model_args={**SMALL, "init_values": 0.1}, weights=path).build()
    assert fingerprint(again) == fingerprint(scaled)


@pytest.mark.parametrize("prefix", ["model.", "ema.module."])
def test_a_checkpoint_of_a_classifier_gives_the_weights_that_were_measured(tmp_path: Path, prefix: str) -> None:
    model, other = small().build(), small().build()
    state = {f"model.{name}": value for name, value in other.state_dict().items()}
    state |= {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    path = save_torch({"state_dict": state, "epoch": 3}, tmp_path, "last.ckpt")
    assert fingerprint(small(weights=path).build()) == fingerprint(model)
