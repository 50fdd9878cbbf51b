"""The verb `export`: a checkpoint becomes SAELens folders, one for each dictionary, with everything folded away."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impact_lightning.files import read_torch
from impact_lightning.results import read_results
from impact_lightning.sae.folded import FoldedSAE, fold_decoder_norms, fold_normalisation
from impact_lightning.sae.saelens import to_config, write_saelens
from impact_lightning.sae.sharing import push_to_hub, write_card
from impact_lightning.types import UserError


def export(checkpoint: Path, *, out: Path, push_to: str | None = None) -> None:
    """Write every dictionary of a checkpoint as a SAELens folder, with a model card.

    Args:
        checkpoint: A checkpoint that `fit` of LitSAE wrote.
        out: Folder for the dictionaries, one sub-folder each.
        push_to: Name of a repository on the Hugging Face Hub, `account/name`, to upload the folder to.
    """
    content = read_torch(checkpoint)
    descriptions: Mapping[str, dict[str, Any]] = content.get("dictionaries", {})
    if not descriptions:
        raise UserError(f"{checkpoint} holds no dictionaries: it was not written by a fit of LitSAE")
    made: dict[str, FoldedSAE] = {}
    refused: list[str] = []
    for key, description in descriptions.items():
        prefix = f"dictionaries.{key}."
        state = {n.removeprefix(prefix): v for n, v in content["state_dict"].items() if n.startswith(prefix)}
        try:
            sae = folded(state, description)
            to_config(sae)
        except UserError as error:
            refused.append(f"{description['name']}: {error}")
        else:
            made[description["name"]] = sae
    for name, sae in made.items():
        write_saelens(out / name, sae)
        print(out / name)
    if made:
        results = checkpoint.parent.parent / "results.json"  # of a test of the same run
        write_card(out, checkpoint.parent.parent.name, read_results(results) if results.exists() else [])
    if refused:
        raise UserError(f"{len(refused)} of {len(descriptions)} dictionaries cannot be exported: {'; '.join(refused)}")
    if push_to is not None:
        print(push_to_hub(out, push_to))


def folded(state: Mapping[str, Tensor], description: Mapping[str, Any]) -> FoldedSAE:
    """Return the dictionary for raw activations.

    Args:
        state: Tensors of a `Dictionary`.
        description: What its checkpoint says of it: kind, site, target, k.
    """
    kind, n_latents = description["kind"], len(state["sae.w_enc"])
    parts: dict[str, Any] = {}
    if kind in ("BatchTopK", "Matryoshka"):
        theta = state["sae.threshold"]
        if theta.isnan():
            theta = state["sae.cut_sum"] / state["sae.cut_weight"]
        parts["threshold"] = theta.float().expand(n_latents).clone()
    elif kind == "JumpReLU":
        parts["threshold"] = state["sae.theta"]
    elif kind == "TopK":
        parts["k"] = int(description["k"])
    elif kind == "Gated":
        parts |= {"r_mag": state["sae.r_mag"], "b_mag": state["sae.b_mag"]}
    architecture = {"TopK": "topk", "ReLU": "standard", "Gated": "gated"}.get(kind, "jumprelu")
    is_transcoder = description["target"] is not None
    sae = FoldedSAE(
        architecture=architecture,  # type: ignore[arg-type]  # one of its literals
        w_enc=state["sae.w_enc"],
        b_enc=state["sae.b_enc"],
        w_dec=state["sae.w_dec"],
        b_dec=state["sae.b_dec"],
        w_skip=state.get("sae.w_skip"),
        is_transcoder=is_transcoder,
        centred=not is_transcoder,
        metadata={key: value for key, value in description.items() if isinstance(value, str | int | float)},
        **parts,
    )
    outward = {}
    if is_transcoder:
        outward = {
            "scale_out": float(state["target_scaling.scale"]),
            "mean_out": _offset(state["target_scaling.mean"], description),
        }
    raw = fold_normalisation(sae, float(state["scaling.scale"]), _offset(state["scaling.mean"], description), **outward)  # type: ignore[arg-type]
    return raw if kind == "TopK" else fold_decoder_norms(raw)  # TopK selects by size, which lengths would change


def _offset(mean: Tensor, description: Mapping[str, Any]) -> Tensor:
    """Return what scaling takes off."""
    mode = description["scaling"]
    if mode == "layer_norm":
        raise UserError("layer_norm scales each token by itself and cannot be folded into weights")
    return mean if mode == "mean_norm" else torch.zeros_like(mean)


def describe(dictionary: Any, name: str) -> dict[str, str | float | None]:
    """Return what a checkpoint has to say of a `Dictionary` besides its tensors."""
    sae = dictionary.sae
    return {
        "name": name,
        "kind": type(sae).__name__,
        "site": dictionary.site,
        "target": dictionary.target,
        "k": getattr(sae, "k", None),
        "scaling": dictionary.scaling.mode,
    }
