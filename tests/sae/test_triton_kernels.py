"""CUDA kernels, in Triton's interpreter, give the numbers of plain PyTorch, and compile for a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA and is not installed here")

ROOT = Path(__file__).parents[2]


def run(case: str, **environment: str) -> None:
    command = [sys.executable, "-m", "tests.sae.triton_cases", case]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "case",
    [
        "weighted_rows_equal_the_plain_ones",
        "row_dots_equal_the_plain_ones",
        "entries_above_equal_a_dense_comparison",
        "nothing_gives_nothing",
    ],
)
def test_in_the_interpreter(case: str) -> None:
    run(case, TRITON_INTERPRET="1")


def test_kernels_compile_for_a_gpu() -> None:
    run("kernels_compile_for_a_gpu")
