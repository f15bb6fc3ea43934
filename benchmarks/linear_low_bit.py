"""Products in codes of 4 and 8 bits beside the same in bfloat16, for the few rows that decoding has.

Each product runs in a chain inside a CUDA graph, over matrices that do not fit into the cache together. In
the same process: the limit, a copy of as many bytes; and the peers, PyTorch's product in bfloat16, and for 4
bits PyTorch's own (tinygemm, which gpt-fast uses). 4 bits are in groups of 128, 8 bits by channels.

    python benchmarks/linear_low_bit.py [--rows 1,4,16,32,64] [--widths 4,8]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from packed_variants import copies_of, random_layer
from record import record
from torch import Tensor

from llmcourse import hardware, timing
from llmcourse.decoding.engine.graphs import recorded
from llmcourse.kernels.packed_linear import PackedLinear

DEVICE = torch.device("cuda")
SHAPES = ((14336, 4096), (4096, 14336), (4096, 4096))
GROUP = 128
INNER_TILES = 8  # of tinygemm's layout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1,4,16,32,64")
    parser.add_argument("--widths", default="4,8")
    arguments = parser.parse_args()
    copy = hardware.copy_bandwidth("cuda")
    for outputs, inputs in SHAPES:
        for width in map(int, arguments.widths.split(",")):
            for rows in map(int, arguments.rows.split(",")):
                report(outputs, inputs, width, rows, copy)
        torch.cuda.empty_cache()


def report(outputs: int, inputs: int, width: int, rows: int, copy: float) -> None:
    x = torch.randn(rows, inputs, device=DEVICE).bfloat16()
    one = random_layer(outputs, inputs, width)
    copies = copies_of(one.nbytes)
    layers = [one, *(random_layer(outputs, inputs, width) for _ in range(copies - 1))]
    wide = [
        one.dequantized().bfloat16(),
        *(torch.randn(outputs, inputs, device=DEVICE).bfloat16() for _ in range(3)),
    ]
    out = x.new_empty(rows, outputs)
    error = relative_error(one, x, wide[0])
    if not error < 2:
        raise SystemExit(
            f"{outputs} x {inputs}, {width} bits, {rows} rows: {error:.2f} times PyTorch's error"
        )
    runs = {
        "ours": (lambda nth: layers[nth].layer(x, out=out, backend="triton", pdl=True), copies),
        "bf16": (lambda nth: F.linear(x, wide[nth]), len(wide)),
    }
    if width == 4:
        packed = [tinygemm(layer) for layer in layers]
        runs["tinygemm"] = (lambda nth: torch.ops.aten._weight_int4pack_mm(x, *packed[nth]), copies)
    taken = timing.measure_in_turns(
        {name: chain(run, number) for name, (run, number) in runs.items()},
        device=DEVICE,
        warmup=3,
        repeats=25,
    )
    seconds = {name: taken[name].median_s / number for name, (_, number) in runs.items()}
    name = f"linear_int{width}_n{outputs}_k{inputs}_m{rows}"
    record(
        name,
        one.nbytes / seconds["ours"] / 1e9,
        "GB/s",
        limit=copy,
        limit_name="copy bandwidth",
        peer="PyTorch's linear in bfloat16, as fast with as many bytes",
        peer_value=one.nbytes / seconds["bf16"] / 1e9,
        spread=taken["ours"].spread,
        device=DEVICE,
        us=round(seconds["ours"] * 1e6, 3),
        bf16_us=round(seconds["bf16"] * 1e6, 3),
        error_over_bf16=round(error, 3),
    )
    if width == 4:
        record(
            f"{name}_vs_tinygemm",
            seconds["tinygemm"] / seconds["ours"],
            "times as fast",
            peer="torch.ops.aten._weight_int4pack_mm",
            peer_value=1.0,
            device=DEVICE,
            us=round(seconds["ours"] * 1e6, 3),
            tinygemm_us=round(seconds["tinygemm"] * 1e6, 3),
        )


def chain(run: Callable[[int], object], number: int) -> Callable[[], None]:
    """One product after the other, recorded."""

    def all_of_them() -> None:
        for nth in range(number):
            run(nth)

    return recorded(all_of_them, DEVICE)


def relative_error(layer: PackedLinear, x: Tensor, wide: Tensor) -> float:
    """Error over that of PyTorch's product of the same numbers in bfloat16."""
    truth = F.linear(x.double(), layer.dequantized().double())
    ours = layer.layer(x, backend="triton", pdl=True)
    return ((ours - truth).norm() / (F.linear(x, wide) - truth).norm()).item()


def tinygemm(layer: PackedLinear) -> tuple[Tensor, int, Tensor]:
    """The same codes in the layout of PyTorch's product, its group size, scales and zero points."""
    codes = (layer.codes + 8).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], INNER_TILES)
    scales = layer.scales.to(torch.bfloat16)
    return packed, GROUP, torch.stack([scales, torch.zeros_like(scales)], dim=2).contiguous()


if __name__ == "__main__":
    main()
