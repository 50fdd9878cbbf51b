"""Benchmarks of curves: as many plain forwards as they need, and one sparse solve for each imputed image."""

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench_sparsity import _interleaved
from scipy.sparse import csc_matrix, lil_matrix
from scipy.sparse.linalg import spsolve
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.curves import CurveEngine
from impact_lightning.attribution.order import order
from impact_lightning.attribution.protocols import CurveProtocol, Patch, Rise, Road
from impact_lightning.attribution.road import impute
from impact_lightning.attribution.substrates import BlurRise
from impact_lightning.backbones import Backbone


def curves(
    model: str = "vit_tiny_patch16_224", images: int = 16, steps: int = 28, batch: int = 16, rounds: int = 5
) -> list[dict[str, Any]]:
    """Draw insertion from a blur and deletion to zeros, of patches and of pixels, beside as many plain forwards.

    The floor is 2(S-1)+2 plain forwards for each image, in batches of the same size. The last part is imputation at
    nine levels, beside one direct sparse solve for each image and level.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vit = Backbone(model).build().eval().requires_grad_(False).to(device)
    h, w = vit.patch_embed.img_size or (224, 224)
    x = torch.randn(images, 3, h, w, generator=torch.Generator().manual_seed(0)).to(device)
    grid = vit.patch_embed.grid_size
    maps = torch.randn(images, *grid, generator=torch.Generator().manual_seed(1)).to(device)
    setup = {"model": model, "images": images, "batch": batch, "rounds": rounds, "threads": torch.get_num_threads()}
    patch, rise = Patch(-(-grid[0] * grid[1] // steps), start=BlurRise()), Rise(-(-h * w // steps))
    return [
        _beside_forwards("patches", vit, x, maps, patch, ["insertion", "morf"], setup),
        _beside_forwards("pixels", vit, x, maps, rise, ["insertion", "deletion"], setup),
        _imputation(x, maps, setup),
    ]


def _beside_forwards(
    units: str,
    vit: VisionTransformer,
    images: Tensor,
    maps: Tensor,
    protocol: CurveProtocol,
    names: list[str],
    setup: dict[str, Any],
) -> dict[str, Any]:
    engine, rows = CurveEngine(vit, batch_size=setup["batch"]), torch.arange(len(images))
    found = engine.subject(images, rows).curves(maps, protocol, names=names)
    n_steps = found[names[0]].values.shape[1] - 1
    n_forwards = len(images) * (2 * (n_steps - 1) + 2)
    batches = torch.arange(n_forwards, device=images.device).remainder(len(images)).split(setup["batch"])

    def figure() -> None:
        engine.subject(images, rows).curves(maps, protocol, names=names)["insertion"].values.cpu()

    def floor() -> None:
        with torch.inference_mode():
            for batch in batches:
                vit(images[batch]).cpu()

    figure_s, floor_s = _interleaved(figure, floor, setup["rounds"])
    return {
        "name": f"insertion and deletion of {units}, {n_steps} steps, beside {n_forwards} plain forwards",
        "figure_s": figure_s,
        "floor_s": floor_s,
        "ratio": figure_s / floor_s,
        "forwards_per_image": _forwards(vit, images, maps, protocol, names, setup["batch"]) / len(images),
        "target": 1.0,
        "setup": {**setup, "figure": "median seconds", "floor": "median seconds, measured in turns"},
    }


def _forwards(
    vit: VisionTransformer, images: Tensor, maps: Tensor, protocol: CurveProtocol, names: list[str], batch: int
) -> int:
    """Return how many sequences the second block has read."""
    seen: list[int] = []
    handle = vit.blocks[1].register_forward_hook(lambda _, __, out: seen.append(len(out)))
    subject = CurveEngine(vit, batch_size=batch).subject(images, torch.arange(len(images)))
    subject.curves(maps, protocol, names=names)
    handle.remove()
    return sum(seen)


def _imputation(images: Tensor, maps: Tensor, setup: dict[str, Any]) -> dict[str, Any]:
    """Time the imputation of four images at nine levels, once by each way."""
    images, h, w = images[:4], *images.shape[-2:]
    images = F.interpolate(images[:, :, ::4, ::4], (h, w), mode="bilinear") + 0.1 * images  # as smooth as photographs
    rank = order(maps[: len(images)], (h, w)).rank
    removed = torch.stack([rank < high for _, high in Road().runs(h * w)["morf"].removed], dim=1)  # (B, 9, h, w)
    repeated, flat = images.repeat_interleave(9, 0), removed.flatten(0, 1)

    def figure() -> None:
        impute(repeated, flat).cpu()

    figure()
    times = []
    for _ in range(setup["rounds"]):
        start = time.perf_counter()
        figure()
        times.append(time.perf_counter() - start)
    pairs = list(zip(repeated.double().cpu().numpy(), flat.cpu().numpy(), strict=True))
    start = time.perf_counter()
    exact = [_sparse_solve(*pair) for pair in pairs]
    floor_s = time.perf_counter() - start
    for pair in pairs:
        _sparse_solve(*pair, as_published=True)
    published_s = time.perf_counter() - start - floor_s
    error = np.abs(impute(repeated, flat).cpu().numpy() - np.stack(exact)).max()
    return {
        "name": "imputation at nine levels, beside a sparse solve for each",
        "figure_s": sorted(times)[len(times) // 2],
        "floor_s": floor_s,
        "ratio": floor_s / sorted(times)[len(times) // 2],
        "ratio_as_published": published_s / sorted(times)[len(times) // 2],
        "largest_error": float(error),
        "target": 20.0,
        "setup": {
            **setup,
            "images": len(images),
            "figure": "median seconds",
            "floor": "seconds of scipy, and no floor",
        },
    }


def _sparse_solve(image: np.ndarray, removed: np.ndarray, *, as_published: bool = False) -> np.ndarray:
    """Return an image `(C, h, w)` imputed by a direct solve.

    Published code puts the system together in a matrix of lists, row by row; otherwise it is made from triplets.
    """
    h, w = removed.shape
    y, x = np.nonzero(removed)
    number = np.full((h, w), -1)
    number[y, x] = every = np.arange(len(y))
    diagonal, right, entries = np.zeros(len(y)), np.zeros((len(y), len(image))), []
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
        weight = 1 / 12 if dy and dx else 1 / 6
        inside = (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w)
        diagonal += weight * inside
        own, oy, ox = every[inside], y[inside] + dy, x[inside] + dx
        other = number[oy, ox]
        entries.append((np.full((other >= 0).sum(), -weight), own[other >= 0], other[other >= 0]))
        right[own[other < 0]] += weight * image[:, oy[other < 0], ox[other < 0]].T
    values, rows, columns = (np.concatenate(parts) for parts in zip(*entries, (diagonal, every, every), strict=True))
    if as_published:
        lists = lil_matrix((len(y), len(y)))
        for part, own, other in (*entries, (diagonal, every, every)):
            lists[own, other] = part
        system = csc_matrix(lists)
    else:
        system = csc_matrix((values, (rows, columns)))
    imputed = image.copy()
    imputed[:, removed] = spsolve(system, right).T
    return imputed
