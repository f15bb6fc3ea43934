"""Linear layers in 8 bits, activations too, on Llama-3-8B's shapes: W8A8 and LLM.int8(), as layers.

Activations are quantized for each token, on the way, and that is part of what is timed; results in bfloat16.
For LLM.int8() one column in two hundred holds outliers, found anew in every call. All calls are in CUDA
graphs, one after the other over different activations and weights, which together outgrow the cache, and each
thing to be compared has its turn in every round. Beside ours: bfloat16's `F.linear`, and `torch._int_mm`, the
product alone of codes that are there.

    linear_w8a8_n<N>_k<K>_m<M>             TOP/s; limit: the best int8 product of a library for many rows, the
                                           copy bandwidth over the bytes of the codes for few; peer: bfloat16
    linear_llm_int8_n<N>_k<K>_m<M>         the same, and what it is of W8A8
    linear_w8a8_product_n<N>_k<K>_m<M>     the product without quantization, for many rows; peer: _int_mm

    python benchmarks/linear_w8a8.py [--rows 4096,8192,1,16,64]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from record import record, record_raw
from torch import Tensor

from llmcourse import hardware
from llmcourse.kernels.int8_linear import Int8Linear
from llmcourse.kernels.int8_matmul import int8_matmul
from llmcourse.kernels.mixed_linear import MixedLinear
from llmcourse.kernels.outlier_columns import THRESHOLD
from llmcourse.kernels.quantize_rows import quantize_rows
from llmcourse.timing import Timing, last_level_cache_bytes, measure_in_turns

SHAPES = ((14336, 4096), (4096, 14336), (4096, 4096))  # outputs and inputs
ROWS = (4096, 8192, 1, 16, 64)
OUTLIERS = 0.005  # of the columns
MANY = 1024  # rows, from which on arithmetic is the limit
LARGEST = 8192  # side of the cube that is multiplied for the limit
WORST = 0.02  # relative error against exact arithmetic, of codes for codes
Run = Callable[[], object]


def activations(rows: int, columns: int, device: torch.device, outliers: float = OUTLIERS) -> Tensor:
    """Normal numbers below the threshold, and columns with twenty times as large ones."""
    x = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
    x.clamp_(-0.98 * THRESHOLD, 0.98 * THRESHOLD)
    x[:, torch.randperm(columns, device=device)[: round(outliers * columns)]] *= 20
    return x


def coded(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Codes of normal numbers, and the scale of each row."""
    return quantize_rows(torch.randn(rows, columns, device=device, dtype=torch.bfloat16))


def recorded(runs: Sequence[Run]) -> Run:
    """All of them, one behind the other; as one CUDA graph where there is a GPU."""
    for run in runs:
        run()
    if not torch.cuda.is_available():
        return lambda: [run() for run in runs]
    torch.cuda.synchronize()
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        kept.extend(run() for run in runs)
    return graph.replay


def in_turns(runs: Mapping[str, Sequence[Run]], device: torch.device, repeats: int) -> dict[str, Timing]:
    """Of one call each."""
    found = measure_in_turns(
        {name: recorded(calls) for name, calls in runs.items()}, device=device, warmup=3, repeats=repeats
    )
    return {
        name: Timing(tuple(time_s / len(runs[name]) for time_s in timing.times_s))
        for name, timing in found.items()
    }


def check(layer: Int8Linear, x: Tensor) -> float:
    """The layer's relative error against the reference, which multiplies exact integers."""
    truth = layer.product(x[:512], "reference").double()
    error = ((layer.product(x, "auto")[:512].double() - truth).norm() / truth.norm()).item()
    if not error <= WORST:
        raise ValueError(f"{type(layer).__name__} must be within {WORST} of its reference, got {error:.3g}")
    return error


def library_limit(device: torch.device, side: int = LARGEST) -> float:
    """The best rate of `torch._int_mm` on a large cube, in operations a second."""
    runs = {"_int_mm": [partial(torch._int_mm, _codes(side, device), _codes(side, device).T)]}
    return 2 * side**3 / in_turns(runs, device, 10)["_int_mm"].median_s


def _codes(side: int, device: torch.device) -> Tensor:
    return coded(side, side, device)[0]


def measured(
    rows: int, outputs: int, inputs: int, device: torch.device, repeats: int
) -> tuple[dict[str, Timing], float]:
    """Seconds of one call of everything, and the larger error of ours."""
    copies = max(3, math.ceil(2 * last_level_cache_bytes(device) / (outputs * inputs)))
    weights = [coded(outputs, inputs, device) for _ in range(copies)]
    xs = [activations(rows, inputs, device) for _ in range(copies)]
    plain, mixed = ([kind(*weight) for weight in weights] for kind in (Int8Linear, MixedLinear))
    error = max(check(plain[0], xs[0]), check(mixed[0], xs[0]))
    wide = [torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16) for _ in range(copies)]
    runs = {
        "bf16": [partial(F.linear, x, w) for x, w in zip(xs, wide, strict=True)],
        "w8a8": [partial(layer.product, x, pdl=True) for x, layer in zip(xs, plain, strict=True)],
        "llm_int8": [partial(layer.product, x, pdl=True) for x, layer in zip(xs, mixed, strict=True)],
    }
    if rows >= MANY:
        codes = [quantize_rows(x) for x in xs]
        pairs = list(zip(codes, weights, strict=True))
        runs["product"] = [partial(int8_matmul, *q, *w, torch.bfloat16, pdl=True) for q, w in pairs]
        runs["_int_mm"] = [partial(torch._int_mm, q[0], w[0].T) for q, w in pairs]
    return in_turns(runs, device, repeats), error


def figures(
    rows: int, outputs: int, inputs: int, device: torch.device, library: float, copy: float, repeats: int = 30
) -> None:
    """Records all of one shape, in TOP/s.

    Args:
        library: operations a second of the best int8 product that a library has.
        copy: GB/s of a plain copy.
    """
    found, error = measured(rows, outputs, inputs, device, repeats)
    operations = 2 * rows * outputs * inputs
    speeds = {name: operations / timing.median_s / 1e12 for name, timing in found.items()}
    record_raw(
        "linear_w8a8",
        device,
        rows=rows,
        outputs=outputs,
        inputs=inputs,
        us={name: [round(t * 1e6, 2) for t in timing.times_s] for name, timing in found.items()},
        error=error,
    )
    limit, limit_name = max(library / 1e12, speeds.get("_int_mm", 0.0)), "best library int8 matmul"
    if rows < MANY:
        moved = outputs * inputs + 4 * outputs + rows * (2 * inputs + 2 * outputs)
        limit = operations / (moved / copy) / 1e3
        limit_name = "copy bandwidth over the bytes of codes, scales, input and result"
    shape = f"n{outputs}_k{inputs}_m{rows}"
    for name in ("w8a8", "llm_int8"):
        more = {} if name == "w8a8" else {"of_w8a8": round(speeds[name] / speeds["w8a8"], 4)}
        record(
            f"linear_{name}_{shape}",
            speeds[name],
            "TOP/s",
            limit=limit,
            limit_name=limit_name,
            peer="bfloat16 F.linear",
            peer_value=speeds["bf16"],
            spread=found[name].spread,
            device=device,
            **more,
        )
    if rows >= MANY:
        record(
            f"linear_w8a8_product_{shape}",
            speeds["product"],
            "TOP/s",
            limit=limit,
            limit_name=limit_name,
            peer="torch._int_mm",
            peer_value=speeds["_int_mm"],
            spread=found["product"].spread,
            device=device,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(map(str, ROWS)), help="comma-separated")
    rows = [int(number) for number in parser.parse_args().rows.split(",")]
    device = torch.device("cuda")
    library, copy = library_limit(device), hardware.copy_bandwidth(device)
    for number in rows:
        for outputs, inputs in SHAPES:
            figures(number, outputs, inputs, device, library, copy)


if __name__ == "__main__":
    main()
