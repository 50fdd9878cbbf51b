"""The fast product is the product, whatever the layout of its factors."""

import pytest
import torch

from impact_lightning.product import product


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-13), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (2, 3, 4, 24), (0, 24), (1, 24)])
def test_equals_the_definition(shape: tuple[int, ...], dtype: torch.dtype, error: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, generator=generator).to(dtype) for size in (shape, (9, 24)))
    wanted = torch.einsum("...d, md -> ...m", a.double(), b.double())
    torch.testing.assert_close(product(a, b).double(), wanted, atol=error, rtol=error)


def test_factors_may_be_views() -> None:
    a, b = torch.randn(4, 6, 48), torch.randn(48, 9)
    wanted = torch.einsum("btd, dm -> btm", a[:, 1:3].double(), b.double())
    torch.testing.assert_close(product(a[:, 1:3], b.T).double(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        product(a.transpose(0, 1)[..., :24], b[::2].T).double(),
        torch.einsum("tbd, dm -> tbm", a.transpose(0, 1)[..., :24].double(), b[::2].double()),
        atol=1e-5,
        rtol=1e-5,
    )
