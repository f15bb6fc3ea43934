"""Which rings the products in packed codes are fastest with, on a GPU of Hopper.

All candidates are compiled first, several at a time, on a small matrix with as many columns, and compared
with float64 there. Then each is timed in a chain of products inside a CUDA graph, over matrices that do not
fit into the cache together, beside PyTorch's product in bfloat16.

    python benchmarks/packed_variants.py [--rows 1,16,64] [--widths 4,8] [--seconds 100]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple
from pathlib import Path

import torch
import torch.nn.functional as F
from record import record_raw
from torch import Tensor

from llmcourse import timing
from llmcourse.decoding.engine.graphs import recorded
from llmcourse.kernels.packed_linear import PackedLinear
from llmcourse.kernels.packed_tiles import BY_FOURS, BY_THREES, BY_TWOS, PackedRing, filled

PLAIN = ((14336, 4096), (4096, 14336), (4096, 4096), (128256, 4096))
NORMED = ((6144, 4096),)  # q, k and v, behind a norm
GATED = ((14336, 4096),)  # gate and up, likewise
KINDS = ((False, False, PLAIN), (True, False, NORMED), (True, True, GATED))
L2_BYTES = 60 * 2**20
Case = tuple[int, int, bool, bool, int, int]  # outputs, inputs, with a norm, gated, width, rows of x


def candidates(case: Case) -> list[PackedRing]:
    """By arithmetic those that keep 40 kB or more under way for each multiprocessor.

    A warp that has 32 rows of weights or 64 reads x once for two or four times 16 of them.
    """
    outputs, _, _, gated, width, rows = case
    few = outputs < 8192
    cuts: list[tuple[int, int, int, int, int]] = []  # rows, blocks, warps_k, splits, warps
    if rows <= 8:
        cuts += [(32, 4, 4, 1, 8), (32, 4, 2, 1, 4), (32, 4, 4, 1, 4), (64, 2, 2, 1, 4)]
        if few:
            cuts += [(16, 4, 4, 1, 4), (16, 8, 8, 1, 8), (32, 8, 4, 1, 8), (32, 8, 8, 1, 8)]
            cuts += [(64, 2, 2, 4, 8), (64, 2, 2, 4, 4), (64, 4, 4, 4, 4)]
        else:
            cuts += [(64, 4, 2, 1, 8), (64, 2, 2, 1, 8), (64, 2, 1, 1, 4), (128, 2, 1, 1, 8)]
            cuts += [(64, 4, 4, 1, 8), (64, 4, 4, 1, 4), (128, 1, 1, 1, 4), (128, 2, 2, 1, 4)]
            cuts += [(256, 1, 1, 1, 8)]
    elif rows <= 16:
        cuts += [(64, 2, 1, 1, 4), (64, 2, 2, 1, 4), (32, 4, 4, 1, 8), (32, 4, 4, 1, 4)]
        if few:
            cuts += [(64, 2, 2, 2, 8), (64, 2, 2, 4, 8), (64, 2, 2, 4, 4), (128, 1, 1, 4, 8)]
        else:
            cuts += [(64, 2, 2, 1, 8), (128, 2, 1, 1, 8), (64, 4, 4, 1, 8), (128, 1, 1, 1, 4)]
    else:
        cuts += [(64, 1, 1, 1, 4), (128, 1, 1, 1, 4), (128, 1, 1, 2, 4), (256, 1, 1, 2, 8)]
        cuts += [(128, 1, 1, splits, 8) for splits in ((2, 4) if few else (1, 2))] if rows <= 32 else []
        if few:
            cuts += [(64, 1, 1, 2, 4), (64, 1, 1, 4, 4), (128, 1, 1, 4, 4), (128, 1, 1, 8, 4)]
            cuts += [(256, 1, 1, 4, 8), (256, 1, 1, 8, 8)]
    if gated:
        cuts = [
            (max(16 * warps // warps_k, r // 2), b, warps_k, s, warps) for r, b, warps_k, s, warps in cuts
        ]
    rooms = (BY_FOURS, BY_THREES, BY_TWOS) if rows <= 8 else (BY_FOURS, BY_TWOS) if rows <= 16 else (BY_TWOS,)
    found = []
    for r, blocks, warps_k, splits, warps in cuts:
        for room in rooms:
            ring = filled(PackedRing(r, blocks, warps_k, 2, 2, splits, warps), rows, width, gated, most=room)
            if ring.held_bytes(rows, width, gated, False) <= room and ring not in found:
                found.append(ring)
    return found


def random_layer(outputs: int, inputs: int, width: int, device: str = "cuda") -> PackedLinear:
    """Any words are codes."""
    words = torch.randint(-(2**31), 2**31, (outputs, inputs * width // 32), device=device, dtype=torch.int32)
    groups, dtype = (inputs // 128, torch.bfloat16) if width == 4 else (1, torch.float32)
    scales = (0.5 + torch.rand(groups, outputs, device=device)) / (2 ** (width - 1) * inputs**0.5)
    settings = {"bits": width, "group_size": inputs // groups, "in_features": inputs}
    return PackedLinear(words, scales.to(dtype), None, **settings)


def compiled(case: Case, ring: PackedRing) -> float:
    """Error over that of PyTorch's product, on a matrix of few rows; what it compiled stays on the disk."""
    _, inputs, normed, gated, width, rows = case
    torch.manual_seed(0)
    outputs = 3 * ring.rows - 16
    layer = random_layer(outputs * (1 + gated), inputs, width)
    x = torch.randn(rows, inputs, device="cuda").bfloat16()
    out = x.new_full((rows, outputs), torch.nan)
    weight = layer.dequantized().double()
    parts = parts_of(x, normed, gated)
    layer.layer(x, out=out, backend="triton", pdl=True, tile=ring, **parts)
    truth, theirs = by_operations(x.double(), weight, parts), by_operations(x, weight.bfloat16(), parts)
    return ((out - truth).norm() / (theirs - truth).norm()).item()


def parts_of(x: Tensor, normed: bool, gated: bool) -> dict[str, object]:
    if not normed:
        return {}
    return {"norm": torch.rand(x.shape[1], device=x.device).to(x.dtype), "gated": gated}


def by_operations(x: Tensor, weight: Tensor, parts: dict[str, object]) -> Tensor:
    if not parts:
        return F.linear(x, weight)
    norm = parts["norm"].to(x.dtype)
    y = F.linear(F.rms_norm(x, norm.shape, norm, 1e-6), weight)
    gate, up = y.chunk(2, dim=-1)
    return F.silu(gate) * up if parts["gated"] else y


def chain_seconds(run: Callable[[int], object], copies: int) -> float:
    """Of one product."""

    def all_of_them() -> None:
        for nth in range(copies):
            run(nth)

    device = torch.device("cuda")
    return (
        timing.measure(recorded(all_of_them, device), device=device, warmup=3, repeats=15).median_s / copies
    )


def copies_of(num_bytes: int) -> int:
    return max(4, min(24, -(-6 * L2_BYTES // num_bytes)))


def report(case: Case, rings: Sequence[PackedRing], write: Callable[..., None]) -> PackedRing:
    """The fastest."""
    outputs, inputs, normed, gated, width, rows = case
    x = torch.randn(rows, inputs, device="cuda").bfloat16()
    parts = parts_of(x, normed, gated)
    wide = [torch.randn(outputs * (1 + gated), inputs, device="cuda").bfloat16() for _ in range(4)]
    peer = chain_seconds(lambda nth: F.linear(x, wide[nth]), 4)
    del wide
    one = random_layer(outputs * (1 + gated), inputs, width)
    layers = [
        one,
        *(random_layer(outputs * (1 + gated), inputs, width) for _ in range(copies_of(one.nbytes) - 1)),
    ]
    out = x.new_empty(rows, outputs)
    found = []
    for ring in rings:
        run = lambda nth, ring=ring: layers[nth].layer(  # noqa: E731
            x, out=out, backend="triton", pdl=True, tile=ring, **parts
        )
        taken = chain_seconds(run, len(layers))
        found.append((taken, ring))
        write(case, ring, taken, peer, one.nbytes)
    best, ring = min(found, key=lambda pair: pair[0])
    print(f"BEST {case} {best * 1e6:.2f} us, bf16 {peer * 1e6:.2f}, {peer / best:.2f} x, "
          f"{one.nbytes / best / 1e9:.0f} GB/s {ring}", flush=True)  # fmt: skip
    return ring


def write(case: Case, ring: PackedRing, taken: float, peer: float, num_bytes: int) -> None:
    names = ("outputs", "inputs", "normed", "gated", "width", "rows")
    row = dict(zip(names, case, strict=True)) | {"ring": list(astuple(ring))}
    figures = {
        "us": round(taken * 1e6, 3),
        "bf16_us": round(peer * 1e6, 3),
        "gbps": round(num_bytes / taken / 1e9),
    }
    record_raw("packed_variants", torch.device("cuda"), **row, **figures)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="1,16,64")
    parser.add_argument("--widths", default="4,8")
    parser.add_argument("--keep", help="a file that gets the fastest ring of each matrix")
    parser.add_argument("--seconds", type=float, default=100, help="after which no other matrix is begun")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    cases = [
        (outputs, inputs, normed, gated, width, rows)
        for rows in map(int, arguments.rows.split(","))
        for width in map(int, arguments.widths.split(","))
        for normed, gated, shapes in KINDS
        for outputs, inputs in shapes
    ]
    right: dict[Case, list[PackedRing]] = {case: [] for case in cases}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(28, os.cpu_count() or 1), mp_context=spawn) as pool:
        running = {}
        for case in cases:
            for ring in candidates(case):
                key = (case[1:], ring)
                running.setdefault(key, (pool.submit(compiled, case, ring), []))[1].append(case)
        for (kind, ring), (future, its_cases) in running.items():
            try:
                error = future.result()
            except Exception as wrong:  # one that the GPU refuses must not keep the others from being timed
                print("FAILED", kind, ring, repr(wrong)[:300], flush=True)
                continue
            if error > 2 or error != error:
                print("WRONG", kind, ring, f"{error:.3g}", flush=True)
                continue
            for case in its_cases:
                right[case].append(ring)
    print(f"{len(running)} compiled in {time.perf_counter() - begun:.0f} s", flush=True)
    best: dict[Case, PackedRing] = {}
    for case in cases:
        if right[case] and time.perf_counter() - begun < arguments.seconds:
            best[case] = report(case, right[case], write)
    if arguments.keep:
        found = [{"case": case, "ring": astuple(ring)} for case, ring in best.items()]
        Path(arguments.keep).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
