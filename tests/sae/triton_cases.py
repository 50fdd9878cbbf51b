"""Run in a process of its own: Triton's interpreter is chosen when Triton is imported, and stays."""

# mypy: ignore-missing-imports

import sys
from typing import Any

import torch
from torch import Tensor

from impact_lightning.sae import sparse, triton_kernels
from impact_lightning.sae.codes import bounds


def quarters(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return multiples of a quarter, whose sums do not depend on their order."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(4).round().div(4).to(dtype)


def weighted_rows_equal_the_plain_ones() -> None:
    for width, dtype in ((5, torch.float32), (128, torch.float32), (300, torch.float64)):
        generator = torch.Generator().manual_seed(0)
        table, weights = quarters(9, width, seed=1, dtype=dtype), quarters(40, seed=2, dtype=dtype)
        ids = torch.randint(0, 9, (40,), generator=generator)
        ends = bounds(torch.randint(0, 12, (40,), generator=generator).sort().values, 13)  # the last one is empty
        want = sparse.weighted_rows(table, ids, ends, weights)
        assert torch.equal(triton_kernels.weighted_rows(table, ids, ends, weights), want)
        out = torch.full_like(want, torch.nan)
        triton_kernels.weighted_rows(table, ids, ends, weights, out)
        assert torch.equal(out, want)


def row_dots_equal_the_plain_ones() -> None:
    for width, dtype in ((5, torch.float32), (128, torch.float32), (300, torch.float64)):
        generator = torch.Generator().manual_seed(0)
        a, b = quarters(9, width, seed=1, dtype=dtype), quarters(7, width, seed=2, dtype=dtype)
        a_ids = torch.randint(0, 9, (40,), generator=generator).sort().values
        b_ids = torch.randint(0, 7, (40,), generator=generator)
        assert torch.equal(triton_kernels.row_dots(a, a_ids, b, b_ids), sparse.row_dots(a, a_ids, b, b_ids))


def entries_above_equal_a_dense_comparison() -> None:
    for height, n_rows in ((3, 5), (1, 1), (1, 2000), (2000, 1), (37, 61), (32, 64), (0, 4)):
        for dtype in (torch.float32, torch.bfloat16):
            z = quarters(height, n_rows, seed=3, dtype=dtype)
            for least in (quarters(1, n_rows, seed=4, dtype=dtype), quarters(height, 1, seed=5, dtype=dtype)):
                want = (z > least).flatten().nonzero().squeeze(1)
                found, values = triton_kernels.entries_above(z, least)
                assert torch.equal(found, want)
                assert torch.equal(values, z.flatten()[want])


def nothing_gives_nothing() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert len(triton_kernels.row_dots(torch.ones(2, 3), none, torch.ones(2, 3), none)) == 0
    sums = triton_kernels.weighted_rows(torch.ones(2, 3), none, torch.zeros(5, dtype=torch.int64), torch.empty(0))
    assert torch.equal(sums, torch.zeros(4, 3))


def kernels_compile_for_a_gpu() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    f, i, n = "*fp32", "*i64", "i32"
    sources: list[tuple[Any, list[str], dict[str, Any]]] = [
        (triton_kernels.weighted_rows_kernel, [f, i, i, f, f, n], {"COLUMNS": 128}),
        (triton_kernels.row_dots_kernel, [f, i, f, i, f, n], {"COLUMNS": 128}),
    ]
    for per_row in (True, False):
        block = {"PER_ROW": per_row, "ENTRIES": 1024}
        for z in (f, "*bf16"):
            sources.append((triton_kernels.count_above_kernel, [z, z, i, n, n], block))
            sources.append((triton_kernels.write_above_kernel, [z, z, i, i, z, n, n], block))
    for kernel, types, constants in sources:
        signature = dict(zip(kernel.arg_names, [*types, *["constexpr"] * len(constants)], strict=True))
        for capability in (80, 90):
            built = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
            assert "ptx" in built.asm


if __name__ == "__main__":
    globals()[sys.argv[1]]()
