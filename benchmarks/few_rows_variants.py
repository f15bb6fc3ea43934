"""How a few rows of input are multiplied fastest on this GPU: the measurements behind `tiles.FEW_ROWS`.

And how dozens of rows are: those behind `split_rings.SPLIT_RINGS`.

Two kinds of them, each recorded as a CUDA graph, in bfloat16 with random weights:

    a chain    of one matrix of Llama-3-8B, eight copies one after the other (two of the head), for eight rows
               of input by each ring, and by the kernel for one row beside them: GB/s of the weights
    a pass     over several tokens of one text, through a whole model, one matrix changed after the other;
               what is fastest is kept: ms, or µs of small models

Alone a matrix has nothing but itself to follow, in a pass also attention and others; so a pass decides, and
the chain which rings are worth one. The parts are Llama-3-8B (chain, then pass), the shape of Qwen3-0.6B, the
target of `train_target.py`, and one token of that, of which three entries of `tiles.MEASURED` are. Part
rows16 is for twice as many rows as a chain has, a tree of fifteen drafts, and the wide target of that script.

For dozens of rows, parts rows64 and rows32, the matrices are Llama-3-8B's, and the pass comes first: every
ring in place of the default, one matrix after the other, then again what was fastest of each. Those are timed
in chains after it. All are compared with fp32 before; beside them stand PyTorch's product alone, which has no
norm and no residual, PyTorch's operations, the memory's datasheet, and the pass over one token. Each of these
parts takes two minutes. Part tree is that of `medusa.py`, by what rows64 has found, or the table says.

    python benchmarks/few_rows_variants.py [--parts llama3_8b,rows16,qwen3_0.6b,target,one,rows64,rows32,tree]

Lines go to benchmarks/results/raw/few_rows_variants_<device>.jsonl, at once.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace

import medusa
import torch
import torch.nn.functional as F
from few_rows_candidates import CHAINS, DOZENS, LLAMA, PASSES, SHARED, Pass, Shape
from large_models import random_decoder, random_prompts
from record import record_raw
from torch import Tensor

from llmcourse import hardware, timing
from llmcourse.decoding.engine.graphs import recorded
from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import KernelSettings, KernelStep, StepState
from llmcourse.decoding.engine.window import Window
from llmcourse.kernels.linear import AnyTile, linear, linear_reference
from llmcourse.kernels.split_rings import SPLIT_RINGS, SplitMemory, SplitRing
from llmcourse.kernels.tiles import Ring

Tiles = Mapping[Shape, AnyTile]
CHAIN_ROWS = 8
RUNNERS_UP = 3  # of a chain, that a pass tries beside its fastest
KEPT = 3  # of a matrix, that are tried again with what is best for the others, and in a chain
DECIMALS = {"gbps": 0, "ms": 4, "us": 2}
PARTS = ("llama3_8b", *PASSES, *DOZENS, "tree")
NAMES = ("outputs", "inputs", "gated", "tile")  # in a row of the file
LIMIT_GBPS = 4800  # of an H200's memory, by its datasheet
WORST = 2.0  # error over that of PyTorch's operations, in the same dtype


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS))
    parts = parser.parse_args().parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--parts must be of {', '.join(PARTS)}, got {unknown[0]!r}; leave it out")
    device, found = hopper(), SPLIT_RINGS[medusa.TREE_TOKENS]
    with torch.no_grad():
        for part in parts:
            if part == "llama3_8b":
                speeds = {shape: report_chain(shape, device) for shape in CHAINS}
                torch.cuda.empty_cache()
                start, others = of_chains(speeds)
                report_pass(replace(LLAMA, candidates=others), device, start)
            elif part in DOZENS:
                best = report_dozens(DOZENS[part], device)
                found = best if DOZENS[part].num_tokens == medusa.TREE_TOKENS else found
                torch.cuda.empty_cache()
            elif part == "tree":
                report_tree(found, device)
            else:
                report_pass(PASSES[part], device)


def hopper() -> torch.device:
    """The GPU; leaves the program where it is none of that generation."""
    if torch.cuda.is_available():
        from llmcourse.kernels.capabilities import runs_wgmma

        if runs_wgmma():
            return torch.device("cuda")
    raise SystemExit("few_rows_variants.py times kernels that only a GPU of Hopper runs; run it on one")


def report_chain(shape: Shape, device: torch.device) -> dict[Ring, float]:
    """GB/s by each ring; what one row takes is recorded too."""
    outputs, _, gated = shape
    weights = [weight_of(shape, device) for _ in range(2 if outputs > 100_000 else 8)]

    def gbps(rows: int, tile: Ring | None) -> float:
        run = chain(weights, rows, gated, tile)
        found = sum(weight.nbytes for weight in weights) / seconds(run, device) / 1e9
        note(f"a chain of one matrix, rows={rows}", shape, tile, device, gbps=found)
        return found

    gbps(1, None)
    return {ring: gbps(CHAIN_ROWS, ring) for ring in CHAINS[shape]}


def report_dozens(case: Pass, device: torch.device) -> Tiles:
    """The fastest pass, and chains of what was fastest in it; names rings that are wrong in the end."""
    errors = {shape: errors_of(shape, case.num_tokens, device) for shape in SHARED}
    torch.cuda.empty_cache()
    right = {shape: [ring for ring, e in found.items() if e <= WORST] for shape, found in errors.items()}
    report_beside(case, device)
    best, ranked = report_rounds(replace(case, candidates=right), device)
    torch.cuda.empty_cache()
    for shape, tiles in ranked.items():
        report_shared(shape, case.num_tokens, [tile for tile in tiles if tile], errors[shape], device)
    wrong = [(shape, ring) for shape in SHARED for ring in SHARED[shape] if ring not in right[shape]]
    if wrong:
        raise SystemExit(f"further from fp32 than {WORST} times PyTorch's operations are: {wrong}")
    return best


def report_rounds(case: Pass, device: torch.device) -> tuple[Tiles, dict[Shape, list[AnyTile | None]]]:
    """The fastest pass by all candidates, then again by the fastest of each matrix; None is the default."""
    taken: dict[Shape, dict[AnyTile | None, float]] = {shape: {} for shape in case.candidates}
    all_of_them = {shape: [*tiles, None] for shape, tiles in case.candidates.items()}
    keep = lambda shape, tile, taken_s: taken[shape].__setitem__(tile, taken_s)  # noqa: E731
    best = report_pass(replace(case, candidates=all_of_them), device, {}, keep)
    ranked = {shape: sorted(found, key=found.get)[:KEPT] for shape, found in taken.items()}
    best = report_pass(replace(case, candidates=ranked), device, best)
    for shape, tile in best.items():
        write(f"{case.what}, chosen", dict(zip(NAMES, (*shape, written(tile)), strict=True)), device)
        print(f"    {shape}: {tile},")
    return best, ranked


def errors_of(shape: Shape, rows: int, device: torch.device) -> dict[SplitRing, float]:
    """Of each ring, over that of PyTorch's operations."""
    weight = weight_of(shape, device)
    x, parts = inputs_of(weight, rows, shape[2])
    truth = linear_reference(x.float(), weight.float(), **in_fp32(parts))
    theirs = error(linear_reference(x, weight, **parts), truth)
    ours = lambda ring: linear(x, weight, backend="triton", pdl=True, tile=ring, **parts)  # noqa: E731
    return {ring: error(ours(ring), truth) / theirs for ring in SHARED[shape]}


def report_shared(
    shape: Shape,
    rows: int,
    rings: Sequence[SplitRing],
    errors: Mapping[SplitRing, float],
    device: torch.device,
) -> None:
    """GB/s by each ring, and by PyTorch."""
    outputs, _, gated = shape
    weights = [weight_of(shape, device) for _ in range(2 if outputs > 100_000 else 8)]
    x, parts = inputs_of(weights[0], rows, gated)
    what = f"a chain of one matrix, rows={rows}"

    def gbps(run: Callable[[], None]) -> float:
        return sum(weight.nbytes for weight in weights) / seconds(run, device) / 1e9

    product = gbps(lambda: in_turn(weights, lambda weight: F.linear(x, weight)))
    operations = gbps(lambda: in_turn(weights, lambda weight: linear_reference(x, weight, **parts)))
    note(f"{what}, PyTorch's product alone", shape, None, device, gbps=product)
    note(f"{what}, PyTorch's operations", shape, None, device, gbps=operations)
    for ring in rings:
        speed = gbps(chain(weights, rows, gated, ring))
        beside = {
            "limit_gbps": LIMIT_GBPS,
            "peer_gbps": round(product),
            "error_over_peers": round(errors[ring], 3),
        }
        note(what, shape, ring, device, gbps=speed, **beside)


def report_tree(tiles: Tiles, device: torch.device) -> None:
    """The headline of `medusa.py` for a tree of 64 tokens, its programs with these tiles."""
    shared = {"programs share columns": KernelSettings(tiles=dict(tiles))}
    medusa.report_tree(device, medusa.SETTINGS | shared)


def in_turn(weights: Sequence[Tensor], product: Callable[[Tensor], object]) -> None:
    for weight in weights:
        product(weight)


def inputs_of(weight: Tensor, rows: int, gated: bool) -> tuple[Tensor, dict[str, object]]:
    """Random x, and what goes with the product in the model: a norm, or a residual."""
    outputs, inputs = weight.shape[0] // (1 + gated), weight.shape[1]
    random = lambda *size: torch.randn(size, device=weight.device).to(torch.bfloat16)  # noqa: E731
    x, last = random(rows, inputs), outputs == LLAMA.config.hidden_size  # of its half of a layer
    parts = {"residual": random(rows, outputs)} if last else {"norm": random(inputs).abs()}
    return x, parts | {"gated": gated}


def in_fp32(parts: Mapping[str, object]) -> dict[str, object]:
    return {name: part.float() if isinstance(part, Tensor) else part for name, part in parts.items()}


def error(found: Tensor, truth: Tensor) -> float:
    return ((found.float() - truth).norm() / truth.norm()).item()


def report_beside(case: Pass, device: torch.device) -> None:
    """The pass over one token, and over all of the case by default and by PyTorch's products."""
    state, library = state_of(case), KernelSettings(few_rows=False)
    ways = {
        f"{case.what}, only one of them": run_of(replace(case, num_tokens=1), state, {}),
        f"{case.what}, by default": run_of(case, state, {}),
        f"{case.what}, PyTorch's products": Window(
            state, case.num_tokens, backend="triton", settings=library
        ).read,
    }
    for what, run in ways.items():
        write(what, {"tile": None, "ms": round(seconds(run, device) * 1e3, DECIMALS["ms"])}, device)


def weight_of(shape: Shape, device: torch.device) -> Tensor:
    outputs, inputs, gated = shape
    return (torch.randn(outputs * (1 + gated), inputs, device=device) * inputs**-0.5).to(torch.bfloat16)


def chain(weights: Sequence[Tensor], rows: int, gated: bool, tile: AnyTile | None) -> Callable[[], None]:
    """A product with each of the matrices, with what goes with it in the model: a norm, or a residual."""
    outputs = weights[0].shape[0] // (1 + gated)
    x, parts = inputs_of(weights[0], rows, gated)
    given = {"out": x.new_empty(rows, outputs), "backend": "triton", "pdl": True, "tile": tile}
    if isinstance(tile, SplitRing):
        given["split_memory"] = SplitMemory.of([tile.needs(rows, outputs, gated)], x.device)

    def run() -> None:
        for weight in weights:
            linear(x, weight, **given, **parts)

    return run


def of_chains(speeds: Mapping[Shape, Mapping[AnyTile, float]]) -> tuple[Tiles, dict[Shape, list[AnyTile]]]:
    """The fastest ring of each chain, and the next that a pass shall try in its place."""
    ranked = {shape: sorted(found, key=found.get, reverse=True) for shape, found in speeds.items()}
    first = {shape: found[0] for shape, found in ranked.items()}
    return first, {shape: found[1 : 1 + RUNNERS_UP] for shape, found in ranked.items()}


def report_pass(
    case: Pass, device: torch.device, start: Tiles | None = None, keep: Callable | None = None
) -> Tiles:
    """What a pass was fastest with; `start` is what it begins with, where that is not the default.

    `keep` is called with each matrix, tile and seconds.
    """
    state = state_of(case)
    scale = {"ms": 1e3, "us": 1e6}[case.unit]

    def tried(shape: Shape, tile: AnyTile | None, taken_s: float) -> None:
        figure = {case.unit: taken_s * scale}
        note(f"{case.what}, this matrix changed", shape, tile, device, **figure)
        if keep:
            keep(shape, tile, taken_s)

    time_s = lambda chosen: seconds(run_of(case, state, chosen), device)  # noqa: E731
    best, least_s = search(case.candidates, time_s, tried, start or {})
    print(f"{case.what}: {least_s * scale:.4g} {case.unit} with {best}", flush=True)
    return best


def state_of(case: Pass) -> StepState:
    """In the midst of a text."""
    state = StepState(random_decoder(case.config), 1, case.capacity, Tensor.contiguous)
    prefill(state, random_prompts(state.model, 1))
    state.positions.fill_(case.position)
    return state


def run_of(case: Pass, state: StepState, chosen: Tiles) -> Callable[[], None]:
    settings = KernelSettings(tiles=dict(chosen))
    if case.num_tokens > 1:
        return Window(state, case.num_tokens, backend="triton", settings=settings).read
    step = KernelStep(state, settings)
    return lambda: step(state)


def search(
    candidates: Mapping[Shape, Sequence[AnyTile | None]],
    time_s: Callable[[Tiles], float],
    tried: Callable[[Shape, AnyTile | None, float], None],
    start: Tiles,
) -> tuple[Tiles, float]:
    """One matrix after the other, each tile on top of the fastest so far; and the seconds of those kept.

    None, the default, is tried in the same way.
    """
    best, least_s = start, time_s(start)
    for shape, its_tiles in candidates.items():
        for tile in its_tiles:
            others = {one: its for one, its in best.items() if one != shape}
            chosen = others | ({shape: tile} if tile else {})
            taken_s = time_s(chosen)
            tried(shape, tile, taken_s)
            if taken_s < least_s:
                best, least_s = chosen, taken_s
    return best, least_s


def seconds(run: Callable[[], None], device: torch.device) -> float:
    return timing.measure(recorded(run, device), device=device, warmup=5, repeats=25).median_s


def note(what: str, shape: Shape, tile: AnyTile | None, device: torch.device, **figure: float) -> None:
    """A row of the file: a figure in its unit, and what stands beside it."""
    (unit, value), *beside = figure.items()
    row = dict(zip(NAMES, (*shape, written(tile)), strict=True))
    write(what, row | {unit: round(value, DECIMALS[unit] or None), **dict(beside)}, device)


def write(what: str, row: Mapping[str, object], device: torch.device) -> None:
    print(what, row, flush=True)
    versions = hardware.fingerprint(device)
    name, date = versions.pop("device"), datetime.date.today().isoformat()
    record_raw("few_rows_variants", device, what=what, **row, device=name, versions=versions, date=date)


def written(tile: AnyTile | None) -> list | None:
    """Its kind and its numbers; None is the kernel for one row, with the tile that it takes by itself."""
    if tile is None:
        return None
    return [type(tile).__name__, *(tile if isinstance(tile, tuple) else astuple(tile))]


if __name__ == "__main__":
    main()
