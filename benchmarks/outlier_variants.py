"""How outliers are found, and multiplied for few rows, best on this GPU: the measurements behind `FlagTile`
and the sizes in `outlier_columns_triton` and `int8_matmul_triton`.

As `int8_variants`, beside it, whose lines these join. A way that finds other columns than the reference is
named, and not timed. Stages:

    find    outliers alone, and with the codes of all others: how x is cut, and from which size on
    skip    codes of rows with and without columns that are left out, by so many warps
    gather  the product for few rows with columns in 16 bits, so many of them at a time; "plain" has none

    python benchmarks/outlier_variants.py [--stages find,skip,gather]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from int8_variants import BF16, OUTLIERS, SHAPES, Run, activations, coded, tell, timed
from torch import Tensor

from llmcourse.kernels import int8_matmul_triton, outlier_columns_triton, quantize_rows_triton
from llmcourse.kernels.int8_matmul import InSixteenBits, int8_matmul
from llmcourse.kernels.outlier_columns import (
    THRESHOLD,
    OutlierColumns,
    find_outliers,
    find_outliers_reference,
    quantize_mixed,
)
from llmcourse.kernels.outlier_columns_triton import FlagTile, launch_find
from llmcourse.kernels.quantize_rows import quantize_rows

TILES = tuple(
    FlagTile(rows, warps, programs)
    for rows, warps in ((4, 4), (8, 2), (8, 4), (8, 8), (16, 2), (16, 4))
    for programs in (264, 528, 1056)
)
ROWS_AND_COLUMNS = (
    *((rows, columns) for rows in (4096, 256, 64, 32, 16, 4, 1) for columns in (4096, 14336)),
    (2048, 11008),
)
MOST_ALONE = 2**17  # numbers of x that one program is tried with
GIVEN = {"backend": "triton", "pdl": True}


def with_constants(run: Run, module: object = outlier_columns_triton, **constants: int) -> object:
    """What is read as a kernel is launched, set for one call."""
    with mock.patch.multiple(module, **constants):
        return run()


def by_many(x: Tensor, tile: FlagTile) -> OutlierColumns:
    return with_constants(lambda: launch_find(x, THRESHOLD, True, tile), ALONE=0)


def by_one(x: Tensor, of_warp: int) -> OutlierColumns:
    return with_constants(lambda: find_outliers(x, **GIVEN), ALONE=MOST_ALONE, OF_WARP=of_warp)


def mixed(x: Tensor, **constants: int) -> tuple[Tensor, Tensor, OutlierColumns]:
    return with_constants(lambda: quantize_mixed(x, **GIVEN), **constants)


def ways_for(rows: int, columns: int) -> dict[str, Callable]:
    """Of one x, to what it gives; the last of that are the outliers."""
    few = [tile for tile in TILES if tile.programs == FlagTile().programs]  # more than there are rows for
    ways = {str(tile): partial(by_many, tile=tile) for tile in (TILES if rows > 256 else few)}
    ways["mixed, by many"] = partial(mixed, ALONE=0)
    if rows * columns <= MOST_ALONE:
        for of_warp in (256, 512, 1024):
            ways[f"one program, {of_warp} a warp"] = partial(by_one, of_warp=of_warp)
            ways[f"mixed, one launch, {of_warp} a warp"] = partial(mixed, ALONE=MOST_ALONE, OF_WARP=of_warp)
    return ways


def is_right(way: Callable, x: Tensor) -> bool:
    """Of what one call gives, over memory that held something else."""
    truth, given = find_outliers_reference(x), way(x)
    found = given[-1] if isinstance(given, tuple) else given
    right = torch.equal(found.flags, truth.flags) and torch.equal(found.listed(), truth.listed())
    if isinstance(given, tuple):
        codes, scale = quantize_rows(x, skipped=truth.flags, **GIVEN)
        right = right and torch.equal(given[0], codes) and torch.equal(given[1], scale)
    return right


def find() -> None:
    for rows, columns in ROWS_AND_COLUMNS:
        xs = [activations(rows, columns, OUTLIERS) for _ in range(4)]
        runs: dict[object, list[Run]] = {
            "quantize": [partial(quantize_rows, x, **GIVEN) for x in xs],
            "amax": [partial(torch.amax, x, 0) for x in xs],
        }
        for name, way in ways_for(rows, columns).items():
            try:
                right = is_right(way, xs[0])
            except Exception as error:  # a candidate that cannot run is told, and the others go on
                print("FAILED", name, type(error).__name__, str(error)[:300], flush=True)
                continue
            if right:
                runs[name] = [partial(way, x) for x in xs]
            else:
                print("WRONG", name, (rows, columns), flush=True)
        for name, seconds in sorted(timed(runs).items(), key=lambda found: found[1]):
            tell("find", name, (rows, columns), seconds, gbps=round(rows * columns * 2 / seconds / 1e9))


def skip() -> None:
    for rows, columns in ((4096, 4096), (4096, 14336), (2048, 11008), (16, 14336)):
        xs = [activations(rows, columns, OUTLIERS) for _ in range(4)]
        flags = find_outliers(xs[0]).flags
        runs: dict[object, list[Run]] = {}
        for name, given in (("all", {}), ("but outliers", {"skipped": flags})):
            for of_warp in (512, 1024, 2048):
                sizes = {"module": quantize_rows_triton, "COLUMNS_OF_WARP": of_warp, "LONG": 2 * columns}
                calls = [partial(quantize_rows, x, **given, **GIVEN) for x in xs]
                runs[f"{name}, {of_warp} a warp"] = [partial(with_constants, call, **sizes) for call in calls]
        for name, seconds in timed(runs).items():
            tell("skip", name, (rows, columns), seconds, gbps=round(rows * columns * 3 / seconds / 1e9))


def gather() -> None:
    for outputs, inputs in SHAPES:
        matrices = [coded(outputs, inputs) for _ in range(max(3, 2 * 2**26 // (outputs * inputs) + 1))]
        for rows in (1, 16, 64):
            x = activations(rows, inputs, OUTLIERS)
            q, s, found = quantize_mixed(x)
            runs: dict[object, list[Run]] = {}
            for size in (None, 16, 32, 64, 128):
                sixteen = InSixteenBits(x, found) if size else None
                calls = [partial(int8_matmul, q, s, *w, BF16, sixteen=sixteen, **GIVEN) for w in matrices]
                name = f"mixed, {size} at a time" if size else "plain"
                sizes = {"module": int8_matmul_triton, "GATHERED": size or 16}
                runs[name] = [partial(with_constants, call, **sizes) for call in calls]
            for name, seconds in timed(runs).items():
                tell("gather", name, (rows, outputs, inputs), seconds, outliers=int(found.count))


STAGES: dict[str, Run] = {"find": find, "skip": skip, "gather": gather}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated")
    for stage in parser.parse_args().stages.split(","):
        STAGES[stage]()


if __name__ == "__main__":
    main()
