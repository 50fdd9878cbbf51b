"""How masks are learnt: constants that the circuits of all models and tasks have in common."""

import math
from dataclasses import dataclass
from typing import Literal

from impact_lightning.circuits.masks import MaskKind
from impact_lightning.circuits.means import Constant
from impact_lightning.types import UserError

Ablation = Constant | Literal["resample", "learned"]


@dataclass(frozen=True)
class Learning:
    """How masks are learnt.

    Args:
        ablation: What replaces a node that is off: its mean over images (`mean`; of prefix tokens and of patches,
            `mean_prefix_patch`; of each token, `mean_position`), `zero`, a constant that is `learned` with the mask, or
            its value on another image of the task (`resample`).
        penalty: A fixed price of a node; None finds for each circuit the price at which its loss is the target.
        mask: Kind of the masks while they are learnt.
        temperature: Of the straight-through gradient, or of a sigmoid mask at the start.
        lr: Learning rate of AdamW at the start; it falls to 0.
        betas: Decay rates of AdamW's moments.
        weight_decay: Of thresholds, towards 0.
        batch: Images of each circuit in a step, over all ranks.
    """

    ablation: Ablation = "mean"
    penalty: float | None = None
    mask: MaskKind = "heaviside"
    temperature: float = 1.0
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-3
    batch: int = 16

    @property
    def constant(self) -> Constant:
        """The constant that stands where none is fixed: learnt ones begin there."""
        if self.ablation == "resample" or self.ablation == "learned":  # what mypy can follow
            return "mean"
        return self.ablation

    def __post_init__(self) -> None:
        """Refuse what learns nothing."""
        for name, value, fits in (
            ("lr", self.lr, 0 < self.lr < math.inf),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf),
            ("betas", self.betas, all(0 <= beta < 1 for beta in self.betas)),
            ("temperature", self.temperature, 0 < self.temperature < math.inf),
            ("batch", self.batch, self.batch >= 2),
            ("penalty", self.penalty, self.penalty is None or 0 <= self.penalty < math.inf),
        ):
            if not fits:
                raise UserError(f"model.learning.{name} is out of range: {value}")
