"""SAELens folders hold every kind of dictionary to the last bit, and damaged ones are refused by file and key."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from impact_lightning.sae.saelens import KINDS, read_log_density, read_saelens, write_saelens
from impact_lightning.types import UserError
from tests.sae.dictionaries import ALL, D_IN, D_OUT, LATENTS, dictionary, inputs

TENSORS = {
    "standard": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "topk": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "jumprelu": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "gated": {"W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"},
    "transcoder": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "skip_transcoder": {"W_enc", "b_enc", "W_dec", "b_dec", "W_skip"},
    "jumprelu_transcoder": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "jumprelu_skip_transcoder": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip"},
}
KEYS = {
    "architecture",
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
    "metadata",
}


@pytest.mark.parametrize("name", ALL)
def test_a_dictionary_comes_back_bit_by_bit(name: str, tmp_path: Path) -> None:
    sae, x = dictionary(name), inputs()
    write_saelens(tmp_path, sae)
    again = read_saelens(tmp_path)
    assert again.encode(x).equal(sae.encode(x))
    assert again.decode(again.encode(x), x).equal(sae.decode(sae.encode(x), x))
    assert again.metadata == sae.metadata


@pytest.mark.parametrize("name", ALL)
def test_files_have_the_keys_of_the_format(name: str, tmp_path: Path) -> None:
    write_saelens(tmp_path, dictionary(name))
    config = json.loads((tmp_path / "cfg.json").read_text())
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    own = {"topk": {"k", "rescale_acts_by_decoder_norm"}}.get(name, set())
    assert config.keys() == KEYS | own | ({"d_out"} if KINDS[name].is_transcoder else set())
    assert config["architecture"] == name
    assert config["apply_b_dec_to_input"] is not KINDS[name].is_transcoder
    assert tensors.keys() == TENSORS[name]
    assert tensors["W_enc"].shape == (D_IN, LATENTS)  # the transpose of ours
    assert tensors["W_dec"].shape == (LATENTS, D_OUT if KINDS[name].is_transcoder else D_IN)


def test_a_pre_activation_on_the_threshold_stays_off(tmp_path: Path) -> None:
    eye = torch.eye(D_IN)
    quarters = torch.arange(D_IN) / 4
    sae = replace(
        dictionary("jumprelu"),
        w_enc=eye,
        w_dec=eye,
        b_enc=torch.zeros(D_IN),
        b_dec=torch.zeros(D_IN),
        threshold=quarters,
    )
    write_saelens(tmp_path, sae)
    again = read_saelens(tmp_path)
    assert again.encode(quarters).count_nonzero() == 0
    assert again.encode(quarters + 0.25).count_nonzero() == D_IN


def test_weights_of_half_precision_are_written_as_float32(tmp_path: Path) -> None:
    sae = dictionary("standard")
    write_saelens(tmp_path, replace(sae, w_enc=sae.w_enc.bfloat16()))
    assert load_file(tmp_path / "sae_weights.safetensors")["W_enc"].dtype == torch.float32


def test_log_density_is_written_where_it_is_known(tmp_path: Path) -> None:
    write_saelens(tmp_path, dictionary("standard"))
    assert read_log_density(tmp_path) is None
    density = torch.zeros(LATENTS)
    density[1] = 0.01
    write_saelens(tmp_path, dictionary("standard"), density=density)
    log_density = read_log_density(tmp_path)
    assert log_density is not None
    assert log_density[:2].tolist() == pytest.approx([-10.0, -2.0])


def test_reads_an_autoencoder_that_keeps_the_bias_out_of_its_input(tmp_path: Path) -> None:
    sae = replace(dictionary("standard"), centred=False)
    write_saelens(tmp_path, sae)
    assert read_saelens(tmp_path).encode(inputs()).equal(sae.encode(inputs()))


def test_reads_topk_that_selects_by_code_times_decoder_norm(tmp_path: Path) -> None:
    sae, x = dictionary("topk"), inputs()
    write_saelens(tmp_path, sae)
    edit(tmp_path, rescale_acts_by_decoder_norm=True)
    norms = sae.w_dec.norm(dim=1)
    z = ((x - sae.b_dec) @ sae.w_enc.T + sae.b_enc) * norms
    codes = torch.zeros_like(z).scatter(1, z.topk(3).indices, z.topk(3).values.relu())
    again = read_saelens(tmp_path)
    torch.testing.assert_close(again.encode(x), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.decode(codes), codes / norms @ sae.w_dec + sae.b_dec, atol=1e-5, rtol=1e-5)


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "<b>mystery</b>"}, "architecture '<b>mystery</b>' is none of"),
        ({"architecture": "gated"}, "has no tensor 'b_gate'"),
        ({"architecture": "standard"}, "has no tensor 'threshold'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"d_in": 7}, "d_in is 7, but the weights have 6"),
        ({"d_sae": None}, "d_sae is None"),
        ({"metadata": [1]}, "metadata is"),
    ],
)
def test_refuses_a_configuration_that_does_not_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_saelens(tmp_path, dictionary("jumprelu"))
    edit(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        read_saelens(tmp_path)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "noise"])
def test_names_the_file_that_is_damaged(name: str, damage: str, tmp_path: Path) -> None:
    write_saelens(tmp_path, dictionary("standard"))
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\xff" * 40)
    with pytest.raises(UserError, match=name):
        read_saelens(tmp_path)


def test_names_the_tensor_that_is_damaged(tmp_path: Path) -> None:
    write_saelens(tmp_path, dictionary("standard"))
    path = tmp_path / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "b_dec": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="b_dec: its shape"):
        read_saelens(tmp_path)
    del tensors["W_dec"]
    save_file(tensors, path)
    with pytest.raises(UserError, match="no tensor 'W_dec'"):
        read_saelens(tmp_path)


def test_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    transcoder = replace(dictionary("transcoder"), architecture="topk", k=3)
    with pytest.raises(UserError, match="no transcoder whose architecture is topk"):
        write_saelens(tmp_path, transcoder)
    with pytest.raises(UserError, match="metadata"):
        write_saelens(tmp_path, replace(dictionary("standard"), metadata={"scale": float("nan")}))
    assert not any(tmp_path.iterdir())
