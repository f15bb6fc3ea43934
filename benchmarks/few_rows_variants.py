"""How a few rows of input are multiplied fastest on this GPU: the measurements behind `tiles.FEW_ROWS`.

Two kinds of them, each recorded as a CUDA graph, in bfloat16 with random weights:

    a chain    of one matrix of Llama-3-8B, eight copies one after the other (two of the head), for eight rows
               of input by each ring, and by the kernel for one row beside them: GB/s of the weights
    a pass     over several tokens of one text, through a whole model, one matrix changed after the other;
               what is fastest is kept: ms, or µs of small models

Alone a matrix has nothing but itself to follow, in a pass also attention and others; so a pass decides, and
the chain which rings are worth one. The parts are Llama-3-8B (chain, then pass), the shape of Qwen3-0.6B, the
target of `train_target.py`, and one token of that, of which three entries of `tiles.MEASURED` are.

    python benchmarks/few_rows_variants.py [--parts llama3_8b,qwen3_0.6b,target,one]

Lines go to benchmarks/results/raw/few_rows_variants_<device>.jsonl, at once.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace

import torch
from few_rows_candidates import CHAINS, LLAMA, PASSES, Pass, Shape
from large_models import random_decoder, random_prompts
from record import record_raw
from torch import Tensor

from llmcourse import hardware, timing
from llmcourse.decoding.engine.graphs import recorded
from llmcourse.decoding.engine.prefill import prefill
from llmcourse.decoding.engine.step import KernelSettings, KernelStep, StepState
from llmcourse.decoding.engine.window import Window
from llmcourse.kernels.linear import AnyTile, linear
from llmcourse.kernels.tiles import Ring

Tiles = Mapping[Shape, AnyTile]
CHAIN_ROWS = 8
RUNNERS_UP = 3  # of a chain, that a pass tries beside its fastest
DECIMALS = {"gbps": 0, "ms": 4, "us": 2}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(["llama3_8b", *PASSES]))
    parts = parser.parse_args().parts.split(",")
    if unknown := [part for part in parts if part not in ("llama3_8b", *PASSES)]:
        parser.error(f"--parts must be of llama3_8b, {', '.join(PASSES)}, got {unknown[0]!r}; leave it out")
    device = hopper()
    with torch.no_grad():
        for part in parts:
            if part == "llama3_8b":
                speeds = {shape: report_chain(shape, device) for shape in CHAINS}
                torch.cuda.empty_cache()
                start, others = of_chains(speeds)
                report_pass(replace(LLAMA, candidates=others), device, start)
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


def weight_of(shape: Shape, device: torch.device) -> Tensor:
    outputs, inputs, gated = shape
    return (torch.randn(outputs * (1 + gated), inputs, device=device) * inputs**-0.5).to(torch.bfloat16)


def chain(weights: Sequence[Tensor], rows: int, gated: bool, tile: AnyTile | None) -> Callable[[], None]:
    """A product with each of the matrices, with what goes with it in the model: a norm, or a residual."""
    outputs, inputs = weights[0].shape[0] // (1 + gated), weights[0].shape[1]
    random = lambda *size: torch.randn(size, device=weights[0].device).to(torch.bfloat16)  # noqa: E731
    x, out = random(rows, inputs), random(rows, outputs)
    last = outputs == LLAMA.config.hidden_size  # of its half of a layer
    parts = {"residual": random(rows, outputs)} if last else {"norm": random(inputs).abs()}

    def run() -> None:
        for weight in weights:
            linear(x, weight, out=out, gated=gated, backend="triton", pdl=True, tile=tile, **parts)

    return run


def of_chains(speeds: Mapping[Shape, Mapping[Ring, float]]) -> tuple[Tiles, dict[Shape, list[Ring]]]:
    """The fastest ring of each chain, and the next that a pass shall try in its place."""
    ranked = {shape: sorted(found, key=found.get, reverse=True) for shape, found in speeds.items()}
    first = {shape: found[0] for shape, found in ranked.items()}
    return first, {shape: found[1 : 1 + RUNNERS_UP] for shape, found in ranked.items()}


def report_pass(case: Pass, device: torch.device, start: Tiles | None = None) -> Tiles:
    """What a pass was fastest with; `start` is what it begins with, where that is not the default."""
    state = StepState(random_decoder(case.config), 1, case.capacity, Tensor.contiguous)
    prefill(state, random_prompts(state.model, 1))
    state.positions.fill_(case.position)
    scale = {"ms": 1e3, "us": 1e6}[case.unit]

    def tried(shape: Shape, tile: AnyTile, taken_s: float) -> None:
        figure = {case.unit: taken_s * scale}
        note(f"{case.what}, this matrix changed", shape, tile, device, **figure)

    time_s = lambda chosen: seconds(run_of(case, state, chosen), device)  # noqa: E731
    best, least_s = search(case.candidates, time_s, tried, start or {})
    print(f"{case.what}: {least_s * scale:.4g} {case.unit} with {best}", flush=True)
    return best


def run_of(case: Pass, state: StepState, chosen: Tiles) -> Callable[[], None]:
    settings = KernelSettings(tiles=dict(chosen))
    if case.num_tokens > 1:
        return Window(state, case.num_tokens, backend="triton", settings=settings).read
    step = KernelStep(state, settings)
    return lambda: step(state)


def search(
    candidates: Mapping[Shape, Sequence[AnyTile]],
    time_s: Callable[[Tiles], float],
    tried: Callable[[Shape, AnyTile, float], None],
    start: Tiles,
) -> tuple[Tiles, float]:
    """One matrix after the other, each tile on top of the fastest so far; and the seconds of those kept."""
    best, least_s = start, time_s(start)
    for shape, its_tiles in candidates.items():
        for tile in its_tiles:
            chosen = {**best, shape: tile}
            taken_s = time_s(chosen)
            tried(shape, tile, taken_s)
            if taken_s < least_s:
                best, least_s = chosen, taken_s
    return best, least_s


def seconds(run: Callable[[], None], device: torch.device) -> float:
    return timing.measure(recorded(run, device), device=device, warmup=5, repeats=25).median_s


def note(what: str, shape: Shape, tile: AnyTile | None, device: torch.device, **figure: float) -> None:
    """A row of the file, of one figure in its unit."""
    outputs, inputs, gated = shape
    (unit, value), versions = *figure.items(), hardware.fingerprint(device)
    row = {"outputs": outputs, "inputs": inputs, "gated": gated, "tile": written(tile)}
    row[unit] = round(value, DECIMALS[unit] or None)
    print(what, row, flush=True)
    name, date = versions.pop("device"), datetime.date.today().isoformat()
    record_raw("few_rows_variants", device, what=what, **row, device=name, versions=versions, date=date)


def written(tile: AnyTile | None) -> list | None:
    """Its kind and its numbers; None is the kernel for one row, with the tile that it takes by itself."""
    if tile is None:
        return None
    return [type(tile).__name__, *(tile if isinstance(tile, tuple) else astuple(tile))]


if __name__ == "__main__":
    main()
