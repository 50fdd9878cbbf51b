"""Settings: what is measured of units, and how finely."""

from dataclasses import dataclass, fields

from impact_lightning.neurons.ablation import Ranking
from impact_lightning.neurons.layers import Kind, Layer
from impact_lightning.neurons.pooling import Pooling
from impact_lightning.types import UserError


@dataclass(frozen=True)
class Settings:
    """What is measured, and how finely.

    Args:
        pooling: The activation of a unit for an image: on the class token, or the largest or mean one on patches.
        ranking: Which units are a class's own: those of the largest attribution to its logit of either sign, or those
            that support it most.
        top_neurons: How many neurons of a layer are a class's own.
        top_heads: Heads, likewise.
        impact_images: Images of each class on which its own units are ablated; each costs up to two forwards a layer.
        k: Images that precision at k looks at.
        bins: Bins of each unit's activations for measures of ranks.
        calibration: Images that the edges of the bins are drawn from, spread evenly; of 50,000 images these many keep
            the certificate of 1024 bins below 1e-3.
        shown: Images of each unit that are kept for the browser.
    """

    pooling: Pooling = "cls"
    ranking: Ranking = "abs"
    top_neurons: int = 50
    top_heads: int = 3
    impact_images: int = 50
    k: int = 60
    bins: int = 1024
    calibration: int = 25_000
    shown: int = 8

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        for entry in fields(self):
            value = getattr(self, entry.name)
            least = {"bins": 8, "impact_images": 0}.get(entry.name, 1)
            if isinstance(value, int) and value < least:
                raise UserError(f"model.settings.{entry.name} must be at least {least}, got {value}")
        if self.shown > self.k:
            raise UserError(f"model.settings.shown is {self.shown}, but only the k = {self.k} strongest are known")

    def top(self, layer: Layer) -> int:
        """Return how many units of a layer are a class's own."""
        wanted: dict[Kind, int] = {"head": self.top_heads, "neuron": self.top_neurons}
        return min(wanted[layer.kind], layer.n_units)
