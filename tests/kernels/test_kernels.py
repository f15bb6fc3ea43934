"""Kernels keep their contract, and what cannot run is refused by name."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmcourse.kernels.backend import resolve
from llmcourse.kernels.decode_attention import Workspace, num_splits
from llmcourse.kernels.linear import linear
from llmcourse.kernels.tiles import gemv_tile, matmul_tile
from llmcourse.kernels.tokens import Choice

CONTRACT = Path(__file__).with_name("contract.py")
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(platform.system() != "Linux", reason="Triton is made for Linux only")
def test_kernels_keep_their_contract():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--noconftest", "-p", "no:cacheprovider", CONTRACT]
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | interpreted
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    assert " passed" in found.stdout and "skipped" not in found.stdout


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("cuda", "backend must be 'auto', 'triton' or 'reference', got 'cuda'; leave it at 'auto'"),
        ("triton", "backend must be one that can run, got 'triton'"),
    ],
)
def test_a_backend_that_cannot_run_is_refused(backend, message):
    with pytest.raises(ValueError) as caught:
        resolve(backend, CPU, torch.float32)
    assert message in str(caught.value)


def test_where_nothing_else_runs_the_reference_does():
    assert resolve("auto", CPU, torch.float32) == resolve("reference", CPU, torch.float64) == "reference"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias": torch.ones(3)}, r"bias must have shape (6,), got (3,)"),
        ({"residual": torch.ones(1, 2)}, r"residual must have shape (1, 6), got (1, 2)"),
        ({"weight": torch.ones(5, 4), "gated": True}, "even number of rows and no bias, got 5 rows"),
        ({"weight": torch.ones(4, 6).T}, "x and weight must be contiguous"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, message):
    arguments = {"x": torch.ones(1, 4), "weight": torch.ones(6, 4)} | changes
    with pytest.raises(ValueError) as caught:
        linear(arguments.pop("x"), arguments.pop("weight"), **arguments)
    assert message in str(caught.value)


def test_a_workspace_and_a_choice_check_their_numbers():
    with pytest.raises(ValueError, match="num_splits must be a power of 2, got 3"):
        Workspace(1, 2, 1, 8, 3, CPU)
    with pytest.raises(ValueError, match="temperature must be at least 0 and finite"):
        Choice(1, 8, CPU, temperature=-1.0)


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("capacity", [16, 328, 32768])
def test_splits_fill_the_chip_and_none_is_without_keys(batch_size, capacity):
    splits = num_splits(batch_size, 8, capacity, 32, 132)
    assert splits & (splits - 1) == 0 and 1 <= splits <= 64
    assert splits == 1 or (splits * batch_size * 8 <= 2 * 132 and splits * 32 <= capacity + 31)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 7), (77, 1000), (320, 320), (12288, 320), (6144, 4096)])
def test_tiles_are_powers_of_two(outputs, inputs, gated):
    for tile in (gemv_tile(outputs, inputs, gated), matmul_tile(outputs, inputs, gated, 2)):
        assert all(n & (n - 1) == 0 and n > 0 for n in (tile.rows, tile.columns, tile.warps))
