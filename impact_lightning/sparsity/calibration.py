"""Calibration: what the layers to be pruned read, summed over images in one streamed forward pass."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from impact_lightning.activations.frozen import readable_split
from impact_lightning.activations.image_reader import ImageReader
from impact_lightning.backbones import capture, check_supported
from impact_lightning.data.module import ImageDataModule
from impact_lightning.data.order import Rows
from impact_lightning.ranks import all_sum, rank_and_world
from impact_lightning.sparsity.targets import Target
from impact_lightning.types import ImageBatch, UserError

CACHED = 65536  # elements that a core's cache holds beside their sums


@dataclass(frozen=True)
class Inputs:
    """Sums over all tokens that a layer has read.

    Args:
        squares: `(in,)` float64, the sum of `x_j^2`.
        tokens: Number of tokens.
        gram: `X^T X` `(in, in)` float64, where it was asked for.
    """

    squares: Tensor
    tokens: int
    gram: Tensor | None = None

    @property
    def norms(self) -> Tensor:
        """Return `||x_j||_2`, `(in,)`."""
        return self.squares.sqrt()


@dataclass(frozen=True)
class Calibration:
    """What one pass has found: images that were read, and the inputs of every target by name."""

    images: int
    inputs: dict[str, Inputs]


@dataclass(frozen=True)
class CalibrationImages:
    """Training images drawn without replacement, prepared as for evaluation.

    Args:
        data: Where the images come from.
        n: Number of images.
        batch_size: Images of one forward; a rank takes whole batches, so that results do not depend on ranks.
        seed: Seed of the draw.
    """

    data: ImageDataModule
    n: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        for name, value in (("images", self.n), ("batch_size", self.batch_size)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, got {self.seed}")
        available = len(readable_split(self.data, "train"))
        if available < self.n:
            raise UserError(f"images: {self.n} are to be drawn for calibration, but the train split has {available}")

    @cached_property
    def rows(self) -> Rows:
        """The rows of the train split that are read, in their own order."""
        drawn = np.random.default_rng(self.seed).permutation(len(self.data.split("train")))[: self.n]
        return np.sort(drawn).astype(np.int64)

    @property
    def fingerprint(self) -> str:
        """Return what identifies the images."""
        return hashlib.sha256(self.data.fingerprint("train").encode() + self.rows.tobytes()).hexdigest()[:16]

    def batches(self, device: torch.device) -> Iterator[Tensor]:
        """Yield this rank's batches of normalised images `(B, C, h, w)`; damaged images are left out."""
        rank, world = rank_and_world()
        starts = range(rank * self.batch_size, self.n, world * self.batch_size)
        reader = ImageReader(self.data.split("train"), workers=self.data.workers)
        for batch in reader.read(self.rows[start : start + self.batch_size] for start in starts):
            if len(batch.labels):
                moved = ImageBatch(batch.images.to(device, non_blocking=True), batch.labels, batch.row)
                yield self.data.on_after_batch_transfer(moved, 0).images


@torch.no_grad()
def calibrate(model: nn.Module, targets: list[Target], batches: Iterable[Tensor], *, gram: bool = False) -> Calibration:
    """Run the model in evaluation mode up to the last target; return sums over the images of all ranks.

    Memory does not depend on the number of images: a sum a column, with `gram` also `in * in` numbers a target.

    Args:
        model: The model that has the targets; its mode is restored.
        targets: Layers whose inputs are summed.
        batches: This rank's normalised images; all ranks call this together.
        gram: Whether SparseGPT needs the products of the columns too.
    """
    sums = {target.name: _Sums(target, gram) for target in targets}
    images = torch.zeros(1, dtype=torch.int64, device=targets[0].weight.device)
    with _evaluating(model), _exact_float32(), capture(model, _end(model, targets)), ExitStack() as hooks:
        for target in targets:
            hooks.callback(target.layer.register_forward_pre_hook(sums[target.name]).remove)
        for batch in batches:
            model(batch)
            images += len(batch)
    return Calibration(int(all_sum(images)), {name: part.over_ranks() for name, part in sums.items()})


class _Sums:
    """The hook of a target: adds what the layer reads."""

    def __init__(self, target: Target, gram: bool) -> None:
        self.target = target
        n_in, device = target.weight.shape[1], target.weight.device
        # a CPU adds as many rows at once as stay in the caches of its cores, a GPU all of them
        rows = 1 if device.type == "cuda" else max(CACHED * torch.get_num_threads() // n_in, 1)
        self.squares = torch.zeros(rows, n_in, dtype=torch.float64, device=device)
        self.gram = torch.zeros(n_in, n_in, dtype=torch.float64, device=device) if gram else None
        self.tokens = 0

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Add the rows `(N, in)` of one batch; products of float32 are exact in float64."""
        x = self.target.rows(args[0])
        self.tokens += len(x)
        if x.is_cuda:
            self.squares[0] += x.double().square_().sum(0)
        else:
            for part in x.split(len(self.squares)):
                exact = part.double()
                self.squares[: len(part)].addcmul_(exact, exact)
        if self.gram is not None:
            self.gram += x.T @ x

    def over_ranks(self) -> Inputs:
        """Return the sums over all ranks; what is not finite is refused."""
        tokens = self.squares.new_tensor([self.tokens])
        squares, n = all_sum(torch.cat([self.squares.sum(0), tokens])).split([self.squares.shape[1], 1])
        layer = self.target.name.removesuffix(".weight")
        if not n:
            raise UserError("calibration: none of the images can be read; mend the data")
        if not squares.isfinite().all():
            raise UserError(f"calibration: {layer} reads nan or infinity: look at the weights and at the images")
        return Inputs(squares, int(n), None if self.gram is None else all_sum(self.gram))


def _end(model: nn.Module, targets: list[Target]) -> str:
    """Return the site after which nothing is needed any more."""
    last, n_blocks = max(target.stage for target in targets), len(check_supported(model).blocks)
    if last < 0:
        return "blocks.0.resid_pre"
    return f"blocks.{last}.resid_post" if last < n_blocks else "logits"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Turn TF32 off: its products have three digits."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # made at run time
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
