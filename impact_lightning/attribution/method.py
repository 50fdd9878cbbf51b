"""What every attribution method is: a function of a model, images and classes to one relevance for each patch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from impact_lightning.backbones import check_supported
from impact_lightning.types import UserError

PRECISIONS = (torch.float32, torch.float64)  # relevance is divided by numbers close to zero: no less will do


class Method(ABC):
    """An attribution method: a frozen dataclass. Maps are raw: of any scale and sign, not normalised, not upsampled."""

    @abstractmethod
    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return the relevance of the patches of each image, `(B, gh, gw)`; no image depends on another.

        Args:
            model: A model in evaluation mode.
            images: Normalised images `(B, 3, h, w)`.
            targets: The class that is explained in each image, `(B,)` int64.
        """


def admit(model: nn.Module, images: Tensor, targets: Tensor) -> VisionTransformer:
    """Return the vision transformer inside `model`, or refuse what no method can explain."""
    transformer = check_supported(model)
    if not isinstance(transformer.patch_embed, PatchEmbed):
        raise UserError(
            f"patch_embed is a {type(transformer.patch_embed).__name__}: maps need one token for each patch"
        )
    if transformer.num_classes <= 0:
        raise UserError("the model has no classes (num_classes is 0): there is no score to explain")
    training = next((name for name, module in transformer.named_modules() if module.training), None)
    if training is not None:
        raise UserError(f"{training or 'the model'} is in training mode: call model.eval() before attribution")
    if transformer.grad_checkpointing:
        raise UserError("gradient checkpointing runs blocks twice: set_grad_checkpointing(False) before attribution")
    _check_images(transformer, images)
    _check_targets(transformer.num_classes, len(images), targets)
    return transformer


def grid_size(model: VisionTransformer, images: Tensor) -> tuple[int, int]:
    """Return how many patches lie below and beside each other in images of this size."""
    h, w = model.patch_embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
    return int(h), int(w)


def on_grid(model: VisionTransformer, images: Tensor, tokens: Tensor) -> Tensor:
    """Return what tokens `(B, T)` say of patches: `(B, gh, gw)`, without class, distillation and register tokens."""
    patches: Tensor = tokens[:, model.num_prefix_tokens :]
    return patches.reshape(-1, *grid_size(model, images))  # (B, gh * gw) -> (B, gh, gw)


def patch_sums(model: VisionTransformer, pixels: Tensor) -> Tensor:
    """Sum pixels `(B, h, w)` over each patch, `(B, gh, gw)`; patches may reach over the lower and right borders."""
    (gh, gw), (ph, pw) = grid_size(model, pixels), model.patch_embed.patch_size
    padded = F.pad(pixels, (0, gw * pw - pixels.shape[-1], 0, gh * ph - pixels.shape[-2]))
    return padded.reshape(-1, gh, ph, gw, pw).sum((2, 4))  # (B, h, w) -> (B, gh, ph, gw, pw) -> (B, gh, gw)


def own_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logit of each image's own class, `(B, C) -> (B,)`."""
    refuse_non_finite(logits, "the logits")
    return logits.gather(1, targets[:, None])[:, 0]


def refuse_non_finite(values: Tensor, name: str) -> Tensor:
    """Return values `(B, ...)`, which are finite."""
    is_finite = values.detach().isfinite().flatten(1).all(1)
    if not is_finite.all():
        raise UserError(f"{name} of image {int((~is_finite).nonzero()[0])} of the batch are not finite")
    return values


@contextmanager
def differentiating(images: Tensor) -> Iterator[None]:
    """Record a graph in full precision, also inside of inference mode, `no_grad` and autocast.

    Compiled code runs eagerly, since it ignores hooks that are younger than itself.
    """
    with (
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


def outside_inference(tensor: Tensor) -> Tensor:
    """Return a tensor that may enter a graph: those made in inference mode may not."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _check_images(model: VisionTransformer, images: Tensor) -> None:
    weights = next(model.parameters())
    if weights.dtype not in PRECISIONS:
        raise UserError(f"the weights are {weights.dtype}: attribution needs float32 or float64")
    if images.dtype != weights.dtype:
        raise UserError(f"the images are {images.dtype} and the weights are {weights.dtype}")
    embed = model.patch_embed
    channels = embed.proj.in_channels
    if images.ndim != 4 or images.shape[1] != channels:
        raise UserError(f"the images are {tuple(images.shape)}, the model takes (B, {channels}, h, w)")
    size = tuple(images.shape[-2:])
    if embed.strict_img_size and embed.img_size is not None and size != tuple(embed.img_size):
        raise UserError(f"the images are {size} and the model takes {tuple(embed.img_size)}")
    if not embed.dynamic_img_pad and any(side % patch for side, patch in zip(size, embed.patch_size, strict=True)):
        raise UserError(f"the images are {size}: no multiple of the patches {tuple(embed.patch_size)}")


def _check_targets(n_classes: int, n_images: int, targets: Tensor) -> None:
    if targets.shape != (n_images,) or targets.dtype != torch.int64:
        raise UserError(f"targets are {tuple(targets.shape)} {targets.dtype}: each of {n_images} images needs an int64")
    wrong = (targets < 0) | (targets >= n_classes)
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise UserError(f"target {int(targets[i])} of image {i} is no class: the model has {n_classes}")
