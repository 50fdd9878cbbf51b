"""A backbone that is only read: images in, rows of activations out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from impact_lightning.activations.batch import ActivationBatch
from impact_lightning.activations.manifest import Origin, Precision
from impact_lightning.activations.tokens import Sequence, Tokens
from impact_lightning.backbones import Backbone, Site, capture, expand_sites, fingerprint, site_width
from impact_lightning.backbones.image_size import check_image_size
from impact_lightning.data.loader import RandomAccess
from impact_lightning.data.module import ImageDataModule, Split
from impact_lightning.data.streams import Shards as ImageShards
from impact_lightning.types import ImageBatch, UserError


class FrozenBackbone:
    """A backbone in evaluation mode whose forward ends after the last site that is read.

    Args:
        backbone: The model and its weights.
        sites: Names or globs of sites.
        tokens: Which tokens of each image are kept.
        precision: `bf16-mixed` runs the forward under autocast.
    """

    def __init__(self, backbone: Backbone, sites: list[str], tokens: Tokens, precision: Precision) -> None:
        self.backbone = backbone
        self.model = backbone.build().eval().requires_grad_(False)
        self.sites = {site: site_width(self.model, site) for site in expand_sites(self.model, sites)}
        for site in self.sites:
            if Site.parse(site).name in ("pooled", "logits"):
                raise UserError(f"sites: {site} has no tokens; choose sites of blocks, or final_norm")
        self.tokens = tokens
        self.precision = precision
        self.sequence = Sequence.of(backbone.name, self.model)
        self.per_image = tokens.per_image(self.sequence)
        self.weights = fingerprint(self.model)

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return next(self.model.parameters()).device

    def origin(self, data: ImageDataModule, split: Split) -> Origin:
        """Return what the activations of a split are of."""
        return Origin(
            model=self.backbone.name,
            model_args=self.backbone.model_args,
            weights=self.weights,
            images=data.fingerprint(split),
            transform=data.protocol(),
            sites=self.sites,
            tokens=self.tokens,
            sequence=self.sequence.length,
            precision=self.precision,
        )

    @contextmanager
    def reading(self, data: ImageDataModule) -> Iterator["Reader"]:
        """Hook the sites for as long as images are read."""
        with capture(self.model, self.sites) as captured:
            yield Reader(self, data, captured)


class Reader:
    """Turns batches of images into batches of activations."""

    def __init__(self, frozen: FrozenBackbone, data: ImageDataModule, captured: dict[str, Tensor]) -> None:
        self.frozen = frozen
        self.data = data
        self.captured = captured
        self.pixels = torch.empty(0)  # the normalised images of the last batch

    @torch.no_grad()
    def __call__(self, batch: ImageBatch) -> ActivationBatch:
        """Return the activations of all kept tokens, image by image: B images of t tokens become B * t rows."""
        frozen, device = self.frozen, self.frozen.device
        token = torch.from_numpy(frozen.tokens.of(batch.row.numpy(), frozen.sequence)).to(device)  # (B, t)
        row, label = batch.row.to(device), batch.labels.to(device)
        images = self.data.on_after_batch_transfer(ImageBatch(batch.images.to(device), label, row), 0).images
        self.pixels = images
        if not len(row):  # all of them were damaged
            nothing = {site: images.new_empty(0, width) for site, width in frozen.sites.items()}
            return ActivationBatch(nothing, row, token.flatten(), label)
        check_image_size(frozen.model, frozen.backbone.name, images.shape[1:])
        with torch.autocast(device.type, torch.bfloat16, enabled=frozen.precision == "bf16-mixed"):
            frozen.model(images)
        image = torch.arange(len(row), device=device)[:, None]  # (B, 1)
        return ActivationBatch(
            activations={site: self.captured[site][image, token].flatten(0, 1) for site in frozen.sites},  # (B * t, D)
            image=row.repeat_interleave(frozen.per_image),
            token=token.flatten(),
            label=label.repeat_interleave(frozen.per_image),
        )


def readable_split(data: ImageDataModule, split: Split) -> RandomAccess:
    """Return a split whose images can be read in any order and are the same each time; refuse another."""
    if split == "train" and getattr(data, "augment", None) is not None:
        raise UserError("data.augment varies the training images; activations are of fixed images: set it to null")
    images = data.split(split)
    if isinstance(getattr(images, "source", None), ImageShards):
        raise UserError("data.source: a stream cannot be read in any order; local shards can, with `source: tar`")
    return images
