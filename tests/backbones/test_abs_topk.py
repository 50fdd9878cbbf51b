"""Activation sparsity keeps the k largest magnitudes of every token, wherever the model goes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from impact_lightning.backbones import Backbone, capture, fingerprint
from impact_lightning.backbones.abs_topk import SITES, ActivationTopK, abs_topk
from impact_lightning.backbones.backbone import ModelArgs
from impact_lightning.cli import main
from impact_lightning.types import UserError
from tests.backbones import KINDS, random_images

TINY = Path(__file__).parents[1] / "conf" / "tiny.yaml"
SIZE: ModelArgs = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2}


def backbone(topk: ActivationTopK | None, **settings: Any) -> Backbone:
    return Backbone("vit_tiny_patch16_224", **{"model_args": SIZE, "activation_topk": topk, **settings})


def random_weights(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def brute_force(x: Tensor, k: int) -> Tensor:
    """Sort every row by hand; no magnitude occurs twice."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        threshold = sorted(map(abs, row))[-k]
        rows.append([value if abs(value) >= threshold else 0.0 for value in row])
    return torch.tensor(rows).view(x.shape)


@pytest.mark.parametrize("k", [1, 3, 7, 8])
def test_the_k_largest_magnitudes_stay_with_their_signs(k: int) -> None:
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(k))
    assert torch.equal(abs_topk(x, k), brute_force(x, k))


def test_of_equal_magnitudes_k_are_kept() -> None:
    assert abs_topk(torch.tensor([[1.0, -1.0, 1.0, 0.5]]), 2).abs().sum() == 2


def test_the_gradient_is_that_of_a_masked_copy() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    mask = (abs_topk(x, 2) != 0).double()
    weights = torch.arange(24.0, dtype=torch.float64).view(4, 6)
    (abs_topk(x, 2).square() * weights).sum().backward()
    ((y * mask).square() * weights).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)
    assert int(x.grad.count_nonzero()) <= 8
    assert torch.autograd.gradcheck(lambda z: abs_topk(z, 2), x)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "giant" not in kind])
@pytest.mark.parametrize("spare_cls", [False, True])
def test_every_token_keeps_its_share_at_all_eight_sites(kind: str, spare_cls: bool) -> None:
    args: ModelArgs = {**SIZE, **KINDS[kind]}
    has_cls = Backbone(kind, model_args=args).build().cls_token is not None
    config = ActivationTopK(spare_cls=spare_cls)
    if spare_cls and not has_cls:
        with pytest.raises(UserError, match="no class token"):
            Backbone(kind, model_args=args, activation_topk=config).build()
        return
    model = Backbone(kind, model_args=args, activation_topk=config).build().eval()
    random_weights(model)
    with capture(model, [f"blocks.*.{site}" for site in SITES]) as seen, torch.no_grad():
        model(random_images())
    assert len(seen) == 2 * len(SITES)
    for name, value in seen.items():
        counts = value.count_nonzero(dim=-1)
        assert (counts[:, int(spare_cls) :] == value.shape[-1] // 4).all(), name
        if spare_cls:
            assert (counts[:, 0] > value.shape[-1] // 4).all(), name


def test_a_share_of_one_changes_no_bit() -> None:
    dense, whole = backbone(None).build(), backbone(ActivationTopK(share=1.0)).build()
    whole.load_state_dict(dense.state_dict(), strict=False)
    assert torch.equal(dense.eval()(random_images()), whole.eval()(random_images()))


def test_a_copy_is_sparse_too() -> None:
    model = backbone(ActivationTopK(share=0.1)).build().eval()
    random_weights(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(random_images()), model(random_images()))
    with capture(twin, "blocks.0.mlp_out") as seen:
        twin(random_images())
    assert (seen["blocks.0.mlp_out"].count_nonzero(dim=-1) == 3).all()


def test_weights_say_that_they_belong_to_a_sparse_model(tmp_path: Path) -> None:
    config = ActivationTopK(share=0.5)
    model, path = backbone(config).build(), tmp_path / "w.safetensors"
    save_file(model.state_dict(), path)
    assert fingerprint(backbone(config, weights=path).build()) == fingerprint(model)
    with pytest.raises(UserError, match=r"set backbone\.activation_topk"):
        backbone(None, weights=path).build()
    with pytest.raises(UserError, match=r"share: 0\.5.*share: 0\.25"):
        backbone(ActivationTopK(), weights=path).build()


def test_dense_weights_begin_a_sparse_training(tmp_path: Path) -> None:
    dense, path = backbone(None).build(), tmp_path / "w.safetensors"
    save_file(dense.state_dict(), path)
    sparse = backbone(ActivationTopK(), weights=path).build()
    assert all(torch.equal(value, sparse.state_dict()[name]) for name, value in dense.state_dict().items())
    assert fingerprint(sparse) != fingerprint(dense)


def test_a_checkpoint_is_read_with_the_activation_sparsity_of_its_training_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = "--model.backbone.activation_topk.share"
    main(["fit", f"--config={TINY}", f"--dir={tmp_path}", "--trainer.max_epochs=1", f"{share}=0.25"])
    words = [f"--config={TINY}", f"--dir={tmp_path}", "--ckpt_path=last"]
    main(["test", *words, f"{share}=0.25"])
    main(["predict", *words, f"{share}=0.25"])
    for more, message in (([], "activation_topk"), ([f"{share}=0.5"], "share: 0.25")):
        with pytest.raises(SystemExit) as ending:
            main(["test", *words, *more])
        assert ending.value.code == 2
        assert message in capsys.readouterr().err


def test_a_norm_is_chosen_by_name() -> None:
    model = backbone(None, model_args={**SIZE, "norm_layer": "rmsnorm"}).build()
    assert "norm.bias" not in model.state_dict()
    x = torch.randn(3, 32)
    assert torch.allclose(model.norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt(), atol=1e-6)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="share"):
        ActivationTopK(share=share)
