"""How products in 8 bits are cut best on this GPU: the measurements behind `int8_tiles.best_int8_tile`.

Codes of random normal numbers with a scale for each row, as they are in models; results in bfloat16. Every
candidate is compared with exact integers before it is timed, and all are timed in turns, each in a CUDA graph
of several calls over different matrices. Stages:

    check     relative error of each candidate, on a ragged shape and on a large one, with and without columns
              in 16 bits
    wide      the product alone for many rows, beside `torch._int_mm`, `torch._scaled_mm` and bfloat16
    quantize  codes of rows by so many warps, and with a norm
    few       the product alone for one row and for dozens, beside bfloat16
    steps     each part of W8A8 and of LLM.int8(), and both as layers; `outlier_variants` has candidates

    python benchmarks/int8_variants.py [--stages check,wide,quantize,few,steps]

Lines go to benchmarks/results/raw/int8_variants_<device>.jsonl, at once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, replace
from functools import partial

import torch
import torch.nn.functional as F
from record import RESULTS, record_raw, words
from torch import Tensor

from llmcourse.kernels import quantize_rows_triton
from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.int8_matmul import InSixteenBits, int8_matmul, int8_matmul_reference
from llmcourse.kernels.int8_tiles import Int8Tile, WideTile, most_outliers
from llmcourse.kernels.mixed_linear import MixedLinear
from llmcourse.kernels.outlier_columns import find_outliers, quantize_mixed
from llmcourse.kernels.quantize_rows import quantize_rows

DEVICE, BF16 = torch.device("cuda"), torch.bfloat16
Run = Callable[[], object]
WIDE = (
    WideTile(),
    WideTile(band=8),
    WideTile(band=32),
    WideTile(stages=3),
    WideTile(stages=4, buffers=1),
    WideTile(128, 128, 2, True, 5, 2),
    WideTile(128, 128, 2, True, 6, 1),
    WideTile(128, 128, 2, True, 5, 2, band=8),
    WideTile(64, 256, 2, True, 4, 2),
    WideTile(64, 256, 2, True, 5, 1),
    WideTile(128, 128, 2, False, 4, 1),
    WideTile(64, 256, 3, False, 3, 2),
    Int8Tile(128, 256, 128, 8, 3),
    Int8Tile(128, 128, 128, 8, 3),
    Int8Tile(128, 128, 128, 4, 3),
)
FEW = {
    1: (
        Int8Tile(16, 16, 256, 2, 4),
        Int8Tile(16, 16, 512, 4, 3),
        Int8Tile(16, 16, 512, 4, 4),
        Int8Tile(16, 16, 1024, 4, 2),
        Int8Tile(16, 32, 256, 4, 4),
        Int8Tile(16, 32, 256, 4, 6),
        Int8Tile(16, 32, 512, 4, 3),
        Int8Tile(16, 64, 256, 4, 4),
        Int8Tile(16, 64, 128, 4, 6),
    ),
    16: (Int8Tile(16, 16, 512, 4, 4), Int8Tile(16, 32, 256, 4, 4), Int8Tile(16, 32, 256, 4, 6)),
    64: (
        Int8Tile(64, 16, 256, 4, 4),
        Int8Tile(64, 32, 256, 4, 4),
        Int8Tile(64, 64, 128, 4, 5),
        Int8Tile(64, 64, 128, 4, 6),
        Int8Tile(64, 32, 128, 4, 6),
    ),
    256: (
        Int8Tile(64, 64, 128, 4, 5),
        Int8Tile(128, 64, 128, 4, 4),
        Int8Tile(128, 128, 128, 8, 3),
        WideTile(),
    ),
}
WIDE_SHAPES = ((4096, 14336, 4096), (4096, 4096, 14336), (4096, 4096, 4096), (8192, 8192, 8192))
SHAPES = ((14336, 4096), (4096, 14336), (4096, 4096))  # outputs and inputs
RIGHT = 0.01  # relative error of a product in bfloat16, at most
OUTLIERS = 0.005  # of the columns


def coded(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return quantize_rows(torch.randn(rows, columns, device=DEVICE, dtype=BF16))


def activations(rows: int, columns: int, outliers: float = 0.0) -> Tensor:
    """Normal numbers below 6, and a share of columns with larger ones."""
    x = torch.randn(rows, columns, device=DEVICE, dtype=BF16).clamp_(-5.9, 5.9)
    count = round(outliers * columns)
    if count:
        x[:, torch.randperm(columns, device=DEVICE)[:count]] *= 20
    return x


def graph_of(runs: list[Run]) -> Run:
    """All of them, one behind the other, as one CUDA graph."""
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    kept = []
    with torch.cuda.graph(graph):
        kept.extend(run() for run in runs)
    return graph.replay


def timed(runs: Mapping[object, list[Run]], rounds: int = 12) -> dict[object, float]:
    """Seconds of one call each, the median of rounds, in turns."""
    graphs = {}
    for name, calls in runs.items():
        try:
            graphs[name] = graph_of(calls)
        except Exception as error:  # a candidate that cannot run is told, and the others go on
            print("cannot run", name, type(error).__name__, str(error)[:300], flush=True)
    found: dict[object, list[float]] = {name: [] for name in graphs}
    for number in range(rounds + 2):
        for name, replay in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            replay()
            end.record()
            end.synchronize()
            if number >= 2:
                found[name].append(begin.elapsed_time(end) / 1e3 / len(runs[name]))
    return {name: statistics.median(times) for name, times in found.items()}


def tell(stage: str, what: object, shape: tuple[int, ...], seconds: float, **more: object) -> None:
    """One line to the file and one to the eye; a shape is of rows, outputs and inputs."""
    row = {"stage": stage, "shape": list(shape), "us": round(seconds * 1e6, 2)} | more
    if isinstance(what, Int8Tile | WideTile):
        row["tile"] = [type(what).__name__, *astuple(what)]
    else:
        row["what"] = what
    if len(shape) == 3 and seconds:
        row["tops"] = round(2 * shape[0] * shape[1] * shape[2] / seconds / 1e12, 1)
    record_raw("int8_variants", DEVICE, **row, date=datetime.date.today().isoformat())
    print(
        stage,
        row.get("tile", row.get("what")),
        shape,
        row["us"],
        "us",
        row.get("tops"),
        more or "",
        flush=True,
    )


def check(share: tuple[int, int] = (0, 1)) -> None:
    """Raises nothing: a candidate that is wrong is named, and told from the others by its error.

    Args:
        share: which part of how many, of candidates that several processes compile at once.
    """
    number, shares = share
    jobs = [("plain", tile) for tile in {*WIDE, *(tile for tiles in FEW.values() for tile in tiles)}]
    jobs += [(name, tile) for name in ("codes", "kept") for tile in (WIDE[0], WIDE[5], WIDE[8], WIDE[-1])]
    jobs = sorted(jobs, key=str)[number::shares]
    for rows, outputs, inputs in ((1000, 1032, 2064), (4096, 4096, 4096)):
        (codes, scale), weights = coded(rows, inputs), coded(outputs, inputs)
        x = activations(rows, inputs, OUTLIERS)
        found = find_outliers(x)
        mixed, mixed_scale = quantize_rows(x, skipped=found.flags)
        kept = torch.randn(outputs, int(found.count), device=DEVICE, dtype=BF16)
        cases = {
            "plain": (codes, scale, None),
            "codes": (mixed, mixed_scale, InSixteenBits(x, found)),
            "kept": (mixed, mixed_scale, InSixteenBits(x, found, kept)),
        }
        truths = {}
        for name, tile in jobs:
            q, s, sixteen = cases[name]
            if name not in truths:
                truth = int8_matmul_reference(q, s, *weights, BF16, sixteen=sixteen)
                truths[name] = truth.double()
            given = {"sixteen": sixteen, "backend": "triton", "tile": tile, "pdl": True}
            try:
                run = partial(int8_matmul, q, s, *weights, BF16, **given)
                error = worst(run, truths[name])
            except Exception as exception:  # a candidate that cannot run is told, and the others go on
                print("FAILED", name, tile, type(exception).__name__, str(exception)[:300], flush=True)
                continue
            tell("check", tile, (rows, outputs, inputs), 0.0, case=name, error=error)


def worst(run: Run, truth: Tensor) -> float:
    """The largest relative error of three runs, over memory full of NaN; 9 where any is left."""
    errors = []
    for _ in range(3):
        torch.empty_like(truth, dtype=BF16).fill_(torch.nan)
        errors.append((run().double() - truth).norm() / truth.norm())
    return float(f"{torch.stack(errors).nan_to_num(9.0).max():.2e}")


def checked() -> set[tuple]:
    """Candidates that were right on every shape when they were checked last; others may hang the device."""
    path = RESULTS / "raw" / f"int8_variants_{words(torch.cuda.get_device_name(), '_')}.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    last = {(tuple(r["tile"]), tuple(r["shape"])): r["error"] for r in rows if r.get("case") == "plain"}
    shapes = {shape for _, shape in last}
    tiles = {tile for tile, _ in last}
    return {tile for tile in tiles if all(last.get((tile, shape), 9.0) < RIGHT for shape in shapes)}


def wide() -> None:
    one, right = torch.ones((), device=DEVICE), checked()
    for rows, outputs, inputs in WIDE_SHAPES:
        sets = [(*coded(rows, inputs), *coded(outputs, inputs)) for _ in range(3)]
        wides = [
            tuple(torch.randn(n, inputs, device=DEVICE, dtype=BF16) for n in (rows, outputs))
            for _ in range(3)
        ]
        fp8 = [(q.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)) for q, _, w, _ in sets]
        runs: dict[object, list[Run]] = {
            "bf16": [lambda a=a, b=b: F.linear(a, b) for a, b in wides],
            "_int_mm": [lambda q=q, w=w: torch._int_mm(q, w.T) for q, _, w, _ in sets],
            "_scaled_mm": [
                lambda q=q, w=w: torch._scaled_mm(q, w.T, scale_a=one, scale_b=one, out_dtype=BF16)
                for q, w in fp8
            ],
        }
        for tile in (tile for tile in WIDE if (type(tile).__name__, *astuple(tile)) in right):
            runs[tile] = [
                lambda s=s, tile=tile: int8_matmul(*s, BF16, backend="triton", tile=tile, pdl=True)
                for s in sets
            ]
        for name, seconds in sorted(timed(runs).items(), key=lambda found: found[1]):
            tell("wide", name, (rows, outputs, inputs), seconds)


def quantize() -> None:
    for rows, columns in ((4096, 4096), (4096, 14336), (8192, 8192), (1, 4096), (16, 14336)):
        xs = [activations(rows, columns) for _ in range(4)]
        norm = torch.rand(columns, device=DEVICE, dtype=BF16)
        runs: dict[object, list[Run]] = {"copy": [lambda x=x: x.clone() for x in xs]}
        for per_warp in (512, 1024, 2048):
            for name, given in (("plain", {}), ("norm", {"norm": norm})):

                def run(x=None, given=given, per_warp=per_warp):
                    quantize_rows_triton.COLUMNS_OF_WARP = per_warp
                    return quantize_rows(x, backend="triton", pdl=True, **given)

                runs[f"{name}, {per_warp} a warp"] = [lambda x=x, run=run: run(x) for x in xs]
        for name, seconds in timed(runs).items():
            traffic = rows * columns * (4 if name == "copy" else 3)
            tell("quantize", name, (rows, columns), seconds, gbps=round(traffic / seconds / 1e9))


def few() -> None:
    for outputs, inputs in SHAPES:
        copies = max(3, 2 * 2**26 // (outputs * inputs) + 1)
        matrices = [coded(outputs, inputs) for _ in range(copies)]
        wides = [torch.randn(outputs, inputs, device=DEVICE, dtype=BF16) for _ in range(copies)]
        for rows, tiles in FEW.items():
            x, (q, s) = torch.randn(rows, inputs, device=DEVICE, dtype=BF16), coded(rows, inputs)
            runs: dict[object, list[Run]] = {"bf16": [lambda w=w, x=x: F.linear(x, w) for w in wides]}
            for tile in tiles:
                runs[tile] = [
                    lambda w=w, t=t, q=q, s=s, tile=tile: int8_matmul(
                        q, s, w, t, BF16, backend="triton", tile=tile, pdl=True
                    )
                    for w, t in matrices
                ]
            for name, seconds in timed(runs).items():
                weight = outputs * inputs * (2 if name == "bf16" else 1)
                tell("few", name, (rows, outputs, inputs), seconds, gbps=round(weight / seconds / 1e9))


def steps() -> None:
    for rows in (4096, 1, 16, 64):
        for outputs, inputs in SHAPES:
            xs = [activations(rows, inputs, OUTLIERS) for _ in range(4)]
            weights = [coded(outputs, inputs) for _ in range(4)]
            found = find_outliers(xs[0])
            mixed = [MixedLinear(*weight) for weight in weights]
            plain = [Int8Linear(*weight) for weight in weights]
            sixteens = torch.randn(outputs, inputs, device=DEVICE, dtype=BF16)
            runs: dict[object, list[Run]] = {
                "bf16": [lambda x=x, w=sixteens: F.linear(x, w) for x in xs],
                "find": [lambda x=x: find_outliers(x, backend="triton", pdl=True).count for x in xs],
                "quantize": [lambda x=x: quantize_rows(x, backend="triton", pdl=True) for x in xs],
                "find and quantize": [lambda x=x: quantize_mixed(x, backend="triton", pdl=True) for x in xs],
                "quantize, skip": [
                    lambda x=x, found=found: quantize_rows(x, skipped=found.flags, backend="triton", pdl=True)
                    for x in xs
                ],
            }
            for pdl in (False, True) if (rows, outputs) == (4096, 14336) else (True,):
                for name, layers in (("w8a8", plain), ("llm.int8", mixed)):
                    runs[f"{name}{', pdl' * pdl}"] = [
                        lambda x=x, layer=layer, pdl=pdl: layer.product(x, "triton", pdl=pdl)
                        for x, layer in zip(xs, layers, strict=True)
                    ]
            if rows > 64:
                for tile in (WIDE[0], WIDE[5]):
                    tile = replace(tile, outliers=most_outliers(inputs))
                    for name, layers in (("w8a8", plain), ("llm.int8", mixed)):
                        runs[f"{name}, pdl, {tile}"] = [
                            lambda x=x, layer=layer, tile=tile: layer.product(
                                x, "triton", pdl=True, tile=tile
                            )
                            for x, layer in zip(xs, layers, strict=True)
                        ]
            for name, seconds in timed(runs).items():
                tell("steps", name, (rows, outputs, inputs), seconds, outliers=int(found.count))


STAGES: dict[str, Callable] = {"check": check, "wide": wide, "quantize": quantize, "few": few, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated")
    begin = time.perf_counter()
    parser.add_argument("--share", default="0/1", help="of the checks, such as 3/8")
    given = parser.parse_args()
    for stage in given.stages.split(","):
        if stage == "check":
            check(tuple(map(int, given.share.split("/"))))
        else:
            STAGES[stage]()
        print(f"— {stage} ended after {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
