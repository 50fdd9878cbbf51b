"""Activations that are made from a known sparse dictionary, as shards: what a dictionary should find is known."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.activations import Tokens
from impact_lightning.activations.batch import site_statistics
from impact_lightning.activations.manifest import INDEX, Configuration, Manifest, Origin
from impact_lightning.activations.shards import read_record, write_shard

FOUND = 0.9  # cosine from which on a direction counts as found
SEED = 7919  # not one that a fit draws its first weights with: those would be the planted directions themselves


@dataclass(frozen=True)
class Planted:
    """Rows `mean + sum of active positive coefficients x unit directions + noise`.

    Args:
        width: Channels D.
        n_directions: Directions K, more than channels.
        active: Directions that make up each row.
        noise: Standard deviation of what is added to each channel.
    """

    width: int
    n_directions: int
    active: int
    noise: float = 0.01

    @property
    def directions(self) -> Tensor:
        """Return the unit directions `(K, D)`."""
        draw = torch.randn(self.n_directions, self.width, generator=torch.Generator().manual_seed(SEED))
        return F.normalize(draw, dim=1)

    def rows(self, n: int, seed: int) -> Tensor:
        """Return rows `(n, D)`, with coefficients between 0.5 and 1.5."""
        generator = torch.Generator().manual_seed(seed)
        mean = torch.randn(self.width, generator=torch.Generator().manual_seed(SEED + 1))
        chosen = torch.rand(n, self.n_directions, generator=generator).topk(self.active, dim=1).indices
        codes = torch.zeros(n, self.n_directions)
        codes.scatter_(1, chosen, 0.5 + torch.rand(n, self.active, generator=generator))
        noise = self.noise * torch.randn(n, self.width, generator=generator)
        return mean + codes @ self.directions + noise  # (n, K) (K, D) -> (n, D)

    def write(self, root: Path, n: int, seed: int) -> Path:
        """Write one shard of rows, as `extract` would."""
        origin = Origin("planted", {}, "", "", {}, {"site": self.width}, Tokens("cls"), 1, "32-true")
        configuration = Configuration(origin, "float32", n_images=1, images_per_shard=1, batch_size=1)
        rows = self.rows(n, seed)
        write_shard(root, 0, {INDEX: np.zeros((n, 3), np.int32), "site": rows.numpy()}, configuration.digest())
        shards = [read_record(root, 0, configuration.digest())]
        Manifest(configuration, shards, {"site": site_statistics(rows)}).write(root)
        return root

    def recovered(self, decoder: Tensor) -> float:
        """Return the share of the directions that some row of a decoder `(F, D)` points along."""
        cosines = self.directions @ F.normalize(decoder, dim=1).T  # (K, F)
        return float((cosines.amax(1) >= FOUND).float().mean())
