"""How fast our attention is, beside cuDNN's and what this GPU can do.

    fwd, bwd       `flash_attention` and its gradients: TFLOP/s, of a bf16 matrix product's
    decode, paged  attention of one new token a row: GB/s of keys and values, of a plain copy's

Kernels are compiled first, by many processes at once. Every result is compared with fp32 before it is timed,
and every figure is written as soon as it is there.

    PYTHONPATH=. python benchmarks/attention.py [--only fwd,bwd,decode,paged] [--budget-s 60]

Ends with 1 if a figure that was asked for is missing.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from cache_rows import KINDS, SHAPES, TILES, compile_cache, report_caches, strides
from decode_variants import in_parallel, survived
from flash_rows import compile_flash, flash_rows, matmul_tflops, report_flash
from record import commit, record_raw

from llmcourse import hardware

PARTS = ("fwd", "bwd", *KINDS)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_parts, default=PARTS, help="parts, separated by commas")
    parser.add_argument("--budget-s", type=float, default=60.0, help="no figure of a part begins after this")
    parser.add_argument("--no-precompile", action="store_true", help="compile when a kernel first runs")
    return parser.parse_args(words)


def _parts(words: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(words.split(",")))
    if not set(found) <= set(PARTS):
        raise argparse.ArgumentTypeError(
            f"must be some of {','.join(PARTS)}, got {words!r}; leave it out for all"
        )
    return found


def jobs(parts: Sequence[str]) -> list[tuple[Callable, tuple]]:
    """What compiles all kernels of these parts; a backward pass compiles the forward pass before it.

    Longer sequences come last: their kernels are those of the shorter ones, if nothing went wrong.
    """
    direction = "bwd" if "bwd" in parts else "fwd"
    rows = flash_rows(direction) if direction in parts else []
    flash = [(compile_flash, (row, simply)) for row in rows for simply in (False, True)]
    kinds = [kind for kind in KINDS if kind in parts or (kind == "decode" and "paged" in parts)]
    caches = [
        (compile_cache, (kind, *setting))
        for kind in kinds
        for setting in itertools.product(TILES[kind], strides(SHAPES), (False, True))
    ]
    half = len(flash) // 2
    return flash[:half] + caches + flash[half:]


@dataclass(frozen=True)
class Task:
    """Figures that are measured together.

    Attributes:
        part: whose budget they share.
        report: measures and records them.
    """

    part: str
    names: list[str]
    report: Callable[[], list[dict]]


def tasks(parts: Sequence[str], device: torch.device) -> Iterator[Task]:
    """All that these parts ask for, after the limits have been measured."""
    kinds = [kind for kind in parts if kind in KINDS]
    matmul = matmul_tflops(device) if len(kinds) < len(parts) else None
    copy = hardware.copy_bandwidth(device) if kinds else None
    about = {"versions": hardware.fingerprint(device), "commit": commit(), "matmul": matmul, "copy": copy}
    print(about, flush=True)
    record_raw("attention", device, **about)
    for part in parts:
        if part not in KINDS:
            for row in flash_rows(part):
                yield Task(part, [row.name], lambda row=row: [report_flash(row, matmul, device)])
    for shape in SHAPES if kinds else ():
        names = [shape.name(kind) for kind in kinds]
        yield Task("caches", names, partial(report_caches, shape, kinds, copy, device))


def main() -> None:
    arguments = parse()
    if not torch.cuda.is_available():
        raise SystemExit("attention.py needs a CUDA GPU, and there is none here")
    begun = time.perf_counter()
    if not arguments.no_precompile:
        in_parallel(jobs(arguments.only))
    recorded, missing = [], []
    part_begun: dict[str, float] = {}
    for task in tasks(arguments.only, torch.device("cuda")):
        now, told = time.perf_counter(), ", ".join(task.names)
        if now - part_begun.setdefault(task.part, now) > arguments.budget_s:
            print(f"--- {told} left out: {arguments.budget_s:.0f} s are over", flush=True)
        else:
            with survived(told), torch.no_grad():
                recorded += task.report()
            torch.cuda.empty_cache()
            print(f"--- {told}: {time.perf_counter() - begun:.0f} s since the start", flush=True)
        missing += [name for name in task.names if name not in {row["name"] for row in recorded}]
    print(table(recorded), flush=True)
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}")


def table(rows: Sequence[dict]) -> str:
    """A line for each figure."""
    lines = []
    for row in rows:
        beside = [f"{row['ratio_limit']:.3f} of {row['limit_name']}"]
        beside += [f"{row['ratio_peer']:.3f} × {row['peer']}"]
        more = ("ratio_fa2", "simple_value", "ratio_contiguous", "block", "splits")
        beside += [f"{name} {row[name]:g}" for name in more if name in row]
        lines.append(f"{row['name']:<30} {row['value']:7.1f} {row['unit']:<8} {', '.join(beside)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
