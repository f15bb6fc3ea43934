"""What benchmarks/outlier_variants.py times is right, and sizes that it tries are set for one call only."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import outlier_variants as variants

from llmcourse.kernels import outlier_columns_triton
from llmcourse.kernels.outlier_columns import OutlierColumns, find_outliers_reference


def test_sizes_are_set_for_one_call():
    alone = outlier_columns_triton.ALONE
    assert variants.with_constants(lambda: outlier_columns_triton.ALONE, ALONE=7) == 7
    assert alone == outlier_columns_triton.ALONE
    with pytest.raises(AttributeError):
        variants.with_constants(lambda: None, ALNOE=7)


def test_a_way_that_finds_other_columns_is_wrong():
    x = torch.zeros(3, 10)
    x[1, 4] = -6.0
    assert variants.is_right(find_outliers_reference, x)
    for flags in (torch.zeros(10), torch.ones(10)):
        assert not variants.is_right(lambda x, flags=flags: OutlierColumns.of(flags), x)
    unsorted = OutlierColumns(find_outliers_reference(x).flags, torch.arange(10), torch.tensor([1]))
    assert not variants.is_right(lambda x: unsorted, x)


def test_one_program_is_tried_where_x_is_small():
    names = {rows: list(variants.ways_for(rows, 4096)) for rows in (1, 32, 64, 4096)}
    assert all(any("one launch" in name for name in names[rows]) for rows in (1, 32))
    assert not any("one" in name for rows in (64, 4096) for name in names[rows])
    assert sum("FlagTile" in name for name in names[4096]) == len(variants.TILES) > 10
