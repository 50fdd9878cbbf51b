"""The logit lens: which classes a feature speaks for, read straight through the model's norm and head."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from impact_lightning.backbones import Site

STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # sites that hold or add to the stream


@torch.no_grad()
def logit_lens(model: VisionTransformer, site: str, directions: Tensor) -> Tensor | None:
    """Return what each direction of unit length adds to the logits, up to a scale: `(F, D) -> (F, C)`.

    The last norm is taken at its slope: its mean taken off, its gain applied, its division left out. Between the site
    and the head the stream goes through other blocks, which the lens does not see. The mean over classes is taken off:
    what raises every logit speaks for none. None where a site is not in the residual stream, or the head is no single
    linear map.
    """
    name, head = Site.parse(site).name, model.head
    norms = [model.norm, model.fc_norm] if name in STREAM else [model.fc_norm]
    if name not in (*STREAM, "final_norm") or not isinstance(head, nn.Linear) or hasattr(model, "head_dist"):
        return None
    rows = nn.functional.normalize(directions.to(head.weight), dim=1)  # (F, D)
    for norm in norms:
        if isinstance(norm, nn.LayerNorm):
            rows = rows - rows.mean(1, keepdim=True)
        weight = getattr(norm, "weight", None)
        rows = rows if weight is None else rows * weight
    logits = rows @ head.weight.T  # (F, D) @ (D, C)
    return logits - logits.mean(1, keepdim=True)
