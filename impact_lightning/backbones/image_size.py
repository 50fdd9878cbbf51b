"""Whether images have the size that a model takes."""

from collections.abc import Sequence

from torch import nn

from impact_lightning.types import UserError

from .sites import check_supported


def check_image_size(model: nn.Module, name: str, shape: Sequence[int]) -> None:
    """Refuse images of another size or number of channels.

    Args:
        model: The model.
        name: What to call it.
        shape: Channels, height and width of an image.
    """
    patches = check_supported(model).patch_embed
    wanted = (patches.proj.in_channels, *(patches.img_size or shape[1:]))
    if tuple(shape) != wanted:
        raise UserError(
            f"the images are {tuple(shape)} and {name} takes {wanted}: change the size of the data, or set "
            "backbone.model_args.img_size or in_chans"
        )
