"""The examination of one dictionary: everything that a test counts of it, in one pass over labelled images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impact_lightning.activations.batch import ActivationBatch
from impact_lightning.metrics.bootstrap import BootstrapSums
from impact_lightning.metrics.class_counts import ClassCounts
from impact_lightning.metrics.monosemanticity import Monosemanticity
from impact_lightning.metrics.recovered import image_scores
from impact_lightning.metrics.top_maps import TopMaps
from impact_lightning.sae.dictionary import Dictionary, Inference
from impact_lightning.sae.embedding import Embedding
from impact_lightning.sae.splice import Splice

TOP = 16  # strongest images that are kept of each latent


class Examination(nn.Module):
    """What a test counts of one dictionary; states are bounded, and ranks are reduced by torchmetrics.

    Args:
        dictionary: The dictionary; its own measures are counted as well.
        n_classes: Number of classes C.
        n_tokens: Kept tokens t of each image.
        embedding: What says which images look alike, or None.
    """

    def __init__(self, dictionary: Dictionary, n_classes: int, n_tokens: int, embedding: Embedding | None) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.n_classes = n_classes
        n_latents, width = dictionary.sae.w_dec.shape
        self.sums = BootstrapSums(5 + width)  # of tokens, error, energy, active latents, cosine, and all channels
        self.maps = TopMaps(n_latents, n_tokens, TOP)
        self.classes = ClassCounts(n_latents, n_classes)
        self.same_label = Monosemanticity(n_latents, n_classes)
        self.alike = None if embedding is None else Monosemanticity(n_latents, embedding.width)
        self.embedding = {} if embedding is None else {"embedding": f"{embedding.name} {embedding.weights}"}
        self.spliced, self.meaned = BootstrapSums(10), BootstrapSums(10)  # of images and image_scores

    @torch.no_grad()
    def update(self, batch: ActivationBatch, embeddings: Tensor | None) -> None:
        """Count all kept tokens of some images, `(B·t, …)`.

        Args:
            batch: The rows.
            embeddings: Of the images, `(B, E)`.
        """
        found = self.dictionary.infer(batch.activations)
        self.dictionary.measure(found)
        images = batch.image.view(-1, self.maps.maps.shape[-1])  # (B, t)
        self.sums.update(_quantities(found, *images.shape), images[:, 0])
        codes = found.codes.view(*images.shape, -1)  # (B·t, F) -> (B, t, F)
        labels = batch.label.view(images.shape)[:, 0]
        self.maps.update(codes, images[:, 0], batch.token.view(images.shape))
        if len(codes) == 0:
            return
        peaks = codes.amax(1)  # (B, F)
        self.classes.update(peaks, labels)
        self.same_label.update(peaks, F.one_hot(labels, self.n_classes))
        if self.alike is not None and embeddings is not None:
            self.alike.update(peaks, embeddings)

    def splice(self, splice: Splice, clean: Tensor, batch: ActivationBatch) -> None:
        """Put the reconstruction in the place of the site and see what the model still predicts.

        Beside it stand the site set to zero, which recovers nothing by definition, and to its mean, which is what a
        dictionary recovers that knows nothing of its input.

        Args:
            splice: The images.
            clean: Logits `(B, C)` of the model as it is.
            batch: The rows of the images.
        """
        dictionary = self.dictionary
        source, target, mean = dictionary.site, dictionary.output_site, dictionary.output_scaling.mean
        logits = [
            splice.logits(source, target, replace)
            for replace in (
                dictionary.replace,
                lambda x: mean.expand(len(x), -1),
                lambda x: mean.new_zeros(len(x), len(mean)),
            )
        ]
        images, labels = (part.view(len(clean), -1)[:, 0] for part in (batch.image, batch.label))
        for sums, changed in ((self.spliced, logits[0]), (self.meaned, logits[1])):
            scores = image_scores(clean, changed, logits[2], labels).flatten(1)  # (B, 3, 3) -> (B, 9)
            sums.update(torch.cat([torch.ones_like(scores[:, :1]), scores], 1), images)


def _quantities(found: Inference, n_images: int, n_tokens: int) -> Tensor:
    """Return sums over the tokens of each image: tokens, error, energy, active latents, cosine, channels."""
    wanted, output = found.wanted.double(), found.output.double()
    parts = [
        torch.ones_like(wanted[:, 0]),
        (wanted - output).square().sum(1),
        wanted.square().sum(1),
        torch.count_nonzero(found.codes, dim=1).double(),
        F.cosine_similarity(wanted, output, dim=1),
    ]
    rows = torch.cat([torch.stack(parts, 1), wanted], 1)  # (B·t, 5 + D)
    return rows.view(n_images, n_tokens, -1).sum(1)
