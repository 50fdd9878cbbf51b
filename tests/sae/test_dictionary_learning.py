"""Dictionaries of the library dictionary_learning give here the codes that they give there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.sae.dictionary_learning import CLASSES, read_dictionary_learning
from impact_lightning.types import UserError
from tests.sae.dictionaries import D_IN, LATENTS, inputs


def state_of(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(2, LATENTS, D_IN, generator=generator)  # (F, D) each
    bias, b_dec = torch.randn(LATENTS, generator=generator), torch.randn(D_IN, generator=generator)
    extra = {"k": torch.tensor(3), "threshold": torch.tensor(0.5)}
    if name == "MatryoshkaBatchTopKSAE":
        return {"W_enc": encoder.T, "b_enc": bias, "W_dec": decoder, "b_dec": b_dec, **extra}
    linear = {"encoder.weight": encoder, "encoder.bias": bias, "decoder.weight": decoder.T}
    return linear | ({"bias": b_dec} if name == "AutoEncoder" else {"b_dec": b_dec, **extra})


def written(folder: Path, name: str, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": name}}))
    state = {key: value for key, value in {**state_of(name), **changes}.items() if value is not None}
    torch.save(state, folder / "ae.pt")
    return folder


def by_hand(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    state = state_of(name)
    is_linear = name != "MatryoshkaBatchTopKSAE"
    encoder = state["encoder.weight"] if is_linear else state["W_enc"].T
    decoder = state["decoder.weight"].T if is_linear else state["W_dec"]
    b_dec = state["bias" if name == "AutoEncoder" else "b_dec"]
    codes = F.relu((x - b_dec) @ encoder.T + state["encoder.bias" if is_linear else "b_enc"])
    if name == "AutoEncoderTopK":
        largest = codes.topk(3)
        codes = torch.zeros_like(codes).scatter(1, largest.indices, largest.values)
    if "BatchTopK" in name:
        codes = codes * (codes > 0.5)
    return codes, codes @ decoder + b_dec


@pytest.mark.parametrize("name", CLASSES)
def test_gives_the_codes_of_the_library(name: str, tmp_path: Path) -> None:
    sae = read_dictionary_learning(written(tmp_path, name))
    codes, output = by_hand(name, inputs())
    torch.testing.assert_close(sae.encode(inputs()), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sae.decode(codes), output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": torch.tensor(-1.0)}, r"ae\.pt: threshold is -1\.0, unset"),
        ({"decoder.weight": None}, "no tensor 'decoder.weight'"),
        ({"b_dec": torch.zeros(2)}, "b_dec: its shape"),
    ],
)
def test_refuses_weights_that_do_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_dictionary_learning(written(tmp_path, "BatchTopKSAE", **changes))


def test_loads_no_objects(tmp_path: Path) -> None:
    torch.save(Path, written(tmp_path, "AutoEncoder") / "ae.pt")
    with pytest.raises(UserError, match=r"ae\.pt: is damaged, or more than weights"):
        read_dictionary_learning(tmp_path)


@pytest.mark.parametrize("config", ["{", "[]", '{"trainer": {"dict_class": "CrossCoder"}}'])
def test_names_a_configuration_that_is_not_read(config: str, tmp_path: Path) -> None:
    (written(tmp_path, "AutoEncoder") / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"config\.json"):
        read_dictionary_learning(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "ae.pt"])
def test_names_a_file_that_is_missing(name: str, tmp_path: Path) -> None:
    (written(tmp_path, "AutoEncoder") / name).unlink()
    with pytest.raises(UserError, match=name):
        read_dictionary_learning(tmp_path)
