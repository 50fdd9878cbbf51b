"""Splicing: what the model predicts when a site holds something else than it computed."""

from collections.abc import Callable

import torch
from torch import Tensor

from impact_lightning.activations.frozen import FrozenBackbone
from impact_lightning.backbones import capture, patch

Replace = Callable[[Tensor], Tensor]  # rows of a site (N, D_in) -> rows of the same or of another site (N, D_out)


class Splice:
    """Forwards of a frozen backbone with the kept tokens of a site replaced; other tokens stay as they are.

    Args:
        frozen: The backbone.
        pixels: Normalised images `(B, 3, h, w)`.
        tokens: Which tokens of each image are kept, `(B, t)`.
    """

    def __init__(self, frozen: FrozenBackbone, pixels: Tensor, tokens: Tensor) -> None:
        self.frozen = frozen
        self.pixels = pixels
        self.tokens = tokens

    @torch.no_grad()
    def logits(self, source: str, target: str, replace: Replace | None = None) -> Tensor:
        """Return logits `(B, C)` of float32.

        Args:
            source: The site whose rows are handed to `replace`.
            target: The site whose rows are replaced, the same or a later one.
            replace: What the rows of the target become; None leaves them.
        """
        frozen, device = self.frozen, self.pixels.device
        image = torch.arange(len(self.pixels), device=device)[:, None]  # (B, 1)

        def edit(x: Tensor) -> Tensor:
            assert replace is not None
            read = x if source == target else seen[source]
            rows = replace(read[image, self.tokens].flatten(0, 1).float())  # (B, t, D_in) -> (B·t, D_out)
            return x.index_put((image, self.tokens), rows.view(*self.tokens.shape, -1).to(x.dtype))

        autocast = torch.autocast(device.type, torch.bfloat16, enabled=frozen.precision == "bf16-mixed")
        edits = {} if replace is None else {target: edit}
        # Not to stop after the captured site: whoever reads the images may hold a capture open that would.
        with capture(frozen.model, [source], stop=False) as seen, patch(frozen.model, edits), autocast:
            logits: Tensor = frozen.model(self.pixels)
        return logits.float()
