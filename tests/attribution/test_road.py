"""Imputation is the solution of a sparse system, for any mask, batch and precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from impact_lightning.attribution.multigrid import Multigrid
from impact_lightning.attribution.road import Imputed, impute
from impact_lightning.types import UserError

OFFSETS = {(dy, dx): 1 / 6 if dy * dx == 0 else 1 / 12 for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx}


def solved(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Return an image `(C, h, w)` by one equation for each removed pixel."""
    pixels = [tuple(pixel) for pixel in np.argwhere(removed)]
    number = {pixel: i for i, pixel in enumerate(pixels)}
    entries: dict[tuple[int, int], float] = {}
    right = np.zeros((len(pixels), len(image)))
    for i, (y, x) in enumerate(pixels):
        for (dy, dx), weight in OFFSETS.items():
            other = (y + dy, x + dx)
            if not (0 <= other[0] < removed.shape[0] and 0 <= other[1] < removed.shape[1]):
                continue
            entries[i, i] = entries.get((i, i), 0) + weight
            if other in number:
                entries[i, number[other]] = -weight
            else:
                right[i] += weight * image[:, other[0], other[1]]
    rows, columns = zip(*entries, strict=True)
    system = csc_matrix((list(entries.values()), (rows, columns)))
    result = image.copy()
    result[:, removed] = spsolve(system, right).reshape(len(pixels), -1).T
    return result


def scenes(n: int, h: int, w: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(n, 3, 6, 6, generator=generator), (h, w), mode="bilinear")
    return (smooth + 0.1 * torch.randn(n, 3, h, w, generator=generator)).to(dtype)


def masks(kind: str, share: float, n: int, h: int, w: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    scores = {
        "blobs": lambda: F.interpolate(torch.randn(n, 1, 5, 5, generator=generator), (h, w), mode="bilinear")[:, 0],
        "pixels": lambda: torch.randn(n, h, w, generator=generator),
        "centre": lambda: (
            -torch.linspace(-1, 1, h).square()[:, None] - torch.linspace(-1, 1, w).square().expand(n, h, w)
        ),
        "corner": lambda: -torch.arange(h)[:, None] - torch.arange(w).float().expand(n, h, w),
    }[kind]()
    places = scores.flatten(1).argsort(1, descending=True)[:, : int(share * h * w)]
    return torch.zeros(n, h * w, dtype=torch.bool).scatter_(1, places, True).view(n, h, w)


@pytest.mark.parametrize("kind", ["blobs", "pixels", "centre", "corner"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
def test_equals_a_sparse_solve_in_single_precision(kind: str, share: float) -> None:
    images, removed = scenes(2, 48, 40, torch.float32), masks(kind, share, 2, 48, 40)
    found = impute(images, removed)
    for image in range(2):
        exact = solved(images[image].double().numpy(), removed[image].numpy())
        np.testing.assert_allclose(
            found[image].numpy(), exact, atol=3e-4
        )  # a thirtieth of the noise; pixels have std 1


@pytest.mark.parametrize(("h", "w"), [(33, 47), (5, 64), (9, 9), (1, 30), (2, 2)])
def test_any_size_is_solved_to_any_tolerance(h: int, w: int) -> None:
    images, removed = scenes(1, h, w), masks("pixels", 0.7, 1, h, w)
    exact = solved(images[0].numpy(), removed[0].numpy())
    np.testing.assert_allclose(impute(images, removed, tolerance=1e-12)[0].numpy(), exact, atol=1e-9)


def test_images_do_not_depend_on_their_batch() -> None:
    images = scenes(3, 32, 32, torch.float32)
    removed = torch.stack([masks("blobs", share, 1, 32, 32)[0] for share in (0.1, 0.5, 0.95)])
    together = impute(images, removed)
    alone = torch.cat([impute(images[i : i + 1], removed[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_what_stays_does_not_move_and_nothing_removed_changes_nothing() -> None:
    images, removed = scenes(2, 20, 20), masks("blobs", 0.5, 2, 20, 20)
    removed[1] = False
    found = impute(images, removed)
    assert torch.equal(found[~removed[:, None].expand_as(found)], images[~removed[:, None].expand_as(found)])
    assert torch.equal(found[1], images[1])


def test_the_mean_of_neighbours_does_not_leave_their_range() -> None:
    images, removed = scenes(1, 40, 40), masks("centre", 0.9, 1, 40, 40)
    found, kept = impute(images, removed), images[:, :, ~removed[0]]
    assert (found <= kept.amax(2)[..., None, None] + 1e-4).all()
    assert (found >= kept.amin(2)[..., None, None] - 1e-4).all()


def test_the_cycle_is_symmetric_and_positive() -> None:
    unknown = masks("blobs", 0.8, 1, 20, 18).double()
    kernel = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]]).double()[None, None]
    held = (F.conv2d((torch.ones_like(unknown) - unknown)[:, None], kernel, padding=1)[:, 0]) * unknown
    cycle = Multigrid(unknown, held, 1)
    where = cycle.finest.padded(unknown[:, None])[0, 0] > 0
    n = int(where.sum())
    columns = []
    for place in where.nonzero()[:, 0].tolist():
        one = torch.zeros(1, 1, len(where), dtype=torch.float64)
        one[0, 0, place] = 1
        columns.append(cycle(one)[0, 0, where].clone())
    matrix = torch.stack(columns)
    assert matrix.shape == (n, n)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_noise_is_on_removed_pixels_and_depends_on_the_image_and_the_level_alone() -> None:
    images, removed = scenes(2, 24, 24), masks("blobs", 0.5, 2, 24, 24)
    rows = torch.tensor([4, 9])
    noise = Imputed(noise=0.01)(images, removed, rows) - impute(images, removed)
    assert (noise[~removed[:, None].expand_as(noise)] == 0).all()
    assert noise[removed[:, None].expand_as(noise)].std() == pytest.approx(0.01, rel=0.05)
    alone = Imputed(noise=0.01)(images[1:], removed[1:], rows[1:]) - impute(images[1:], removed[1:])
    torch.testing.assert_close(alone[0], noise[1], rtol=0, atol=1e-6)
    assert torch.equal(Imputed(noise=0.0)(images, removed, rows), impute(images, removed))


def test_half_precision_is_imputed_in_single() -> None:
    images, removed = scenes(1, 24, 24, torch.float32), masks("blobs", 0.5, 1, 24, 24)
    found = impute(images.bfloat16(), removed)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), impute(images, removed), rtol=0.01, atol=0.01)


def test_refuses_an_image_of_which_nothing_stays() -> None:
    with pytest.raises(UserError, match="everything is removed"):
        impute(scenes(2, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool))
