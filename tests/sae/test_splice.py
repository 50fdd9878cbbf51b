"""Spliced predictions are those of the model with the kept tokens of a site replaced, and of no others."""

import pytest
import torch
from torch import Tensor

from impact_lightning.activations import Tokens
from impact_lightning.activations.frozen import FrozenBackbone
from impact_lightning.backbones import Backbone, capture, patch
from impact_lightning.sae.splice import Splice

ARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
SITE, LATER = "blocks.0.resid_post", "blocks.1.mlp_out"


@pytest.fixture(scope="module")
def frozen() -> FrozenBackbone:
    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", model_args={**ARGS}, num_classes=4)
    return FrozenBackbone(backbone, [SITE, LATER], Tokens("patches"), "32-true")


def images() -> Tensor:
    return torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def splice(frozen: FrozenBackbone) -> Splice:
    return Splice(frozen, images(), torch.arange(1, 5).expand(6, 4))


def test_replacing_rows_by_themselves_changes_no_bit(frozen: FrozenBackbone) -> None:
    with torch.no_grad():
        plain = frozen.model(images())
    assert torch.equal(splice(frozen).logits(SITE, SITE), plain)
    assert torch.equal(splice(frozen).logits(SITE, SITE, lambda x: x), plain)


def test_kept_tokens_are_replaced_and_the_class_token_is_not(frozen: FrozenBackbone) -> None:
    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 1:] = 2 * x[:, 1:]
        return x

    with torch.no_grad(), patch(frozen.model, {SITE: edit}):
        wanted = frozen.model(images())
    assert torch.equal(splice(frozen).logits(SITE, SITE, lambda x: 2 * x), wanted)


def test_a_transcoder_reads_one_site_and_replaces_another(frozen: FrozenBackbone) -> None:
    with torch.no_grad(), capture(frozen.model, [SITE], stop=False) as seen:
        frozen.model(images())
    rows = seen[SITE][:, 1:].clone()

    def edit(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], rows + 1], 1)

    with torch.no_grad(), patch(frozen.model, {LATER: edit}):
        wanted = frozen.model(images())
    assert torch.equal(splice(frozen).logits(SITE, LATER, lambda x: x + 1), wanted)


def test_whoever_reads_the_images_may_stop_early(frozen: FrozenBackbone) -> None:
    plain = splice(frozen).logits(SITE, SITE)
    with capture(frozen.model, [SITE]):
        assert torch.equal(splice(frozen).logits(SITE, SITE), plain)
