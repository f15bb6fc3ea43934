"""Which tile shapes, launch modes and splits decode fastest on this GPU: the measurements behind `tiles.py`.

Stages, each of which survives a failing variant, and prints a short table:

    check      every kernel against fp64, outputs poisoned
    compile    all tile shapes, on many cores
    linear     every matrix of the three models: GB/s of the weights, over tile shapes, in a CUDA graph
    rows       the matrices of Llama-3-8B for a few rows of input, beside PyTorch's product
    engine     tokens/s of the three models over launch modes, attention's tiles and strips of small matrices
    batches    tokens/s of Llama-3-8B for several rows, by PyTorch's products and by our kernels
    attention  of one layer, over lengths of the cache, tiles and splits

    PYTHONPATH=. python benchmarks/decode_variants.py --out FOLDER [--stages check,engine,…]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from kernel_checks import BF16, CHECKS, DEVICE, check_tile, passed, random, relative_error, run_check
from large_models import CONFIGS, NEW, PROMPT, random_model, random_prompts, step_bytes
from record import commit

from llmcourse import hardware
from llmcourse.decoding.engine import DecodeEngine
from llmcourse.decoding.engine.step import KernelSettings
from llmcourse.kernels.decode_attention import Workspace, decode_attention
from llmcourse.kernels.linear import linear, linear_reference
from llmcourse.kernels.tiles import STRIPS, AttentionTile, Strip, Tile, gemv_rule, gemv_tile
from llmcourse.model import Decoder

WORKERS = 14
SEARCH_UNTIL_S = 150  # then the search for tiles takes what it has


class Log:
    """JSON lines in a file, at once; and the time since the start."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.begun = time.perf_counter()
        self.file = (folder / "decode_variants.jsonl").open("a", encoding="utf-8")

    def elapsed_s(self) -> float:
        return time.perf_counter() - self.begun

    def __call__(self, **row) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()


@contextlib.contextmanager
def survived(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        print(f"FAILED {what}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        print(traceback.format_exc(limit=-2)[-600:], flush=True)


def graph_seconds(work: Callable[[], None], repeats: int = 7) -> float:
    """Median seconds of a replay of `work`, recorded as a graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


# --- linear --------------------------------------------------------------------------------------


def matrices(name: str) -> dict[str, tuple[int, int, bool]]:
    c = CONFIGS[name]
    width = c.num_heads * c.head_dim
    return {
        "qkv": (width + 2 * c.num_kv_heads * c.head_dim, c.hidden_size, False),
        "o": (c.hidden_size, width, False),
        "gate_up": (c.intermediate_size, c.hidden_size, True),
        "down": (c.hidden_size, c.intermediate_size, False),
        "lm_head": (c.vocab_size, c.hidden_size, False),
    }


def candidates(outputs: int, inputs: int, gated: bool) -> list[Tile]:
    """Tiles of 32 to 128 bytes a thread and step; the default is among them."""
    tiles = [gemv_tile(outputs, inputs, gated), gemv_rule(outputs, inputs, gated)]
    for columns in (512, 1024, 2048, 4096):
        if columns > inputs or columns * 14 < inputs:
            continue
        for warps in (4, 8):
            for thread_bytes in (32, 64, 128):
                rows = thread_bytes * 32 * warps // (2 * columns) // (2 if gated else 1)
                if 1 <= rows <= 32:
                    tiles.append(Tile(rows, columns, warps))
    return list(dict.fromkeys(tiles))


def compile_linear(outputs: int, inputs: int, gated: bool, normed: bool, tile: tuple, pdl: bool) -> None:
    """Compiles one kernel into Triton's cache on disk, without running it."""
    from llmcourse.kernels import linear_triton

    kernel = linear_triton._gemv_kernel

    class Warm:
        def __getitem__(self, grid):
            return functools.partial(kernel.warmup, grid=grid)

    x = torch.empty(1, inputs, dtype=BF16, device=DEVICE)
    out = torch.empty(1, outputs, dtype=BF16, device=DEVICE)
    norm, residual = (x, None) if normed else (None, out)
    try:
        linear_triton._gemv_kernel = Warm()
        linear_triton.launch_gemv(x, x, norm, 1e-5, None, residual, gated, out, Tile(*tile), pdl)
    finally:
        linear_triton._gemv_kernel = kernel


def attempt(job: tuple[Callable, tuple]) -> tuple[str, object]:
    """Runs a job in a worker; its result, or what went wrong."""
    function, arguments = job
    try:
        with torch.no_grad():
            return "done", function(*arguments)
    except Exception as error:
        where = traceback.format_exc(limit=-1)[-300:]
        return "failed", f"{type(error).__name__}: {str(error)[:300]} {where}"


def in_parallel(jobs: list[tuple[Callable, tuple]]) -> list[tuple[str, object]]:
    """Compilation is work for many cores; what is timed afterwards finds it on disk."""
    start = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        results = list(pool.map(attempt, jobs))
    failed = [(job, found) for job, (state, found) in zip(jobs, results, strict=True) if state == "failed"]
    print(f"{len(jobs)} jobs in {time.perf_counter() - start:.0f} s, {len(failed)} failed", flush=True)
    for job, found in failed[:6]:
        print(f"FAILED {str(job)[:200]}: {found}", flush=True)
    return results


def shapes() -> list[tuple[int, int, bool, bool]]:
    """Outputs, inputs, gated, normed of every matrix of every model."""
    found = {
        (*shape, kind in ("qkv", "gate_up", "lm_head"))
        for name in CONFIGS
        for kind, shape in matrices(name).items()
    }
    return sorted(found, key=lambda shape: (shape[1], shape[0]))


def stage_check(log: Log) -> None:
    """All checks at once, since they need no quiet machine; strips are compiled on the way."""
    jobs: list[tuple[Callable, tuple]] = [(run_check, (index,)) for index in range(len(CHECKS))]
    names = [(check.__name__, arguments) for check, arguments in CHECKS]
    for shape in STRIPS:
        for strip in strips_of(*shape):
            jobs.append((check_tile, (*shape, strip)))
            names.append(("check_tile", (*shape, strip)))
    for (name, arguments), (state, found) in zip(names, in_parallel(jobs), strict=True):
        log(stage="check", what=name, arguments=str(arguments), state=state, found=found)
        if not passed(found):
            print(f"WRONG {name} {arguments}: {found}", flush=True)


def stage_compile() -> None:
    in_parallel(
        [
            (compile_linear, (outputs, inputs, gated, normed, tuple(tile), True))
            for outputs, inputs, gated, normed in shapes()
            for tile in candidates(outputs, inputs, gated)
        ]
    )


def stage_linear(log: Log, copy: float) -> dict[tuple[int, int, bool], Tile]:
    best = {}
    for outputs, inputs, gated, normed in shapes():
        with survived(f"linear {outputs} {inputs}"):
            best[outputs, inputs, gated] = search_tile(log, copy, outputs, inputs, gated, normed)
    print("TILES =", {key: tuple(tile) for key, tile in best.items()}, flush=True)
    return best


def search_tile(log: Log, copy: float, outputs: int, inputs: int, gated: bool, normed: bool) -> Tile:
    traffic_bytes = outputs * (1 + gated) * inputs * 2
    count = max(3, min(48, 1_500_000_000 // traffic_bytes))
    whole = random(outputs * (1 + gated), inputs, scale=inputs**-0.5)
    weights = [whole.clone() for _ in range(count)]
    parts = {"norm": random(inputs).abs()} if normed else {"residual": random(1, outputs)}
    parts["gated"] = gated
    x = random(1, inputs)
    wide = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in parts.items()}
    truth = linear_reference(x.float(), whole.float(), **wide).double()
    theirs = relative_error(linear_reference(x, whole, **parts), truth)
    results = []
    for tile in candidates(outputs, inputs, gated):
        if results and log.elapsed_s() > SEARCH_UNTIL_S:
            break
        with survived(f"linear {outputs} {inputs} {tile}"):
            out = torch.full((1, outputs), float("nan"), dtype=BF16, device=DEVICE)
            linear(x, whole, out=out, backend="triton", pdl=True, tile=tile, **parts)
            if not (ratio := relative_error(out, truth) / theirs) < 2:
                print(f"WRONG linear {outputs} {inputs} {tile}: {ratio}", flush=True)
                continue
            gbps = traffic_bytes / time_linear(x, weights, parts, tile, True) / 1e9
            results.append((gbps, tile))
            shape = (outputs, inputs, gated)
            log(stage="linear", shape=shape, tile=tuple(tile), pdl=True, gbps=gbps, of_copy=gbps / copy)
    results.sort(reverse=True)
    plain = 0.0
    with survived("without pdl"):
        plain = traffic_bytes / time_linear(x, weights, parts, results[0][1], False) / 1e9
    default = next((speed for speed, tile in results if tile == gemv_tile(outputs, inputs, gated)), 0)
    top = "  ".join(f"{speed:.0f} {tuple(tile)[:3]}" for speed, tile in results[:4])
    kind = "gated" if gated else "     "
    print(f"{outputs:>6} × {inputs:<5} {kind} default {default:.0f} | no pdl {plain:.0f} | {top}", flush=True)
    return results[0][1]


def time_linear(x: torch.Tensor, weights: list[torch.Tensor], parts: dict, tile: Tile, pdl: bool) -> float:
    """Seconds of one launch, in a chain over many matrices."""
    outputs = weights[0].shape[0] // (1 + parts["gated"])
    outs = [torch.empty(1, outputs, dtype=BF16, device=DEVICE) for _ in range(2)]

    def chain() -> None:
        for i, weight in enumerate(weights):
            linear(x, weight, out=outs[i % 2], backend="triton", pdl=pdl, tile=tile, **parts)

    return graph_seconds(chain) / len(weights)


# --- rows ----------------------------------------------------------------------------------------

ROW_TILES = [
    Tile(32, 128, 4, 4),
    Tile(32, 256, 4, 4),
    Tile(32, 256, 4, 3),
    Tile(64, 64, 4, 6),
    Tile(64, 128, 4, 4),
    Tile(64, 128, 4, 5),
    Tile(64, 256, 4, 3),
    Tile(128, 64, 4, 5),
    Tile(128, 128, 8, 4),
]


def stage_rows(log: Log, copy: float) -> None:
    model = "llama3_8b"
    for kind, (outputs, inputs, gated) in matrices(model).items():
        traffic_bytes = outputs * (1 + gated) * inputs * 2
        count = max(2, min(16, 2_000_000_000 // traffic_bytes))
        weights = [random(outputs * (1 + gated), inputs, scale=inputs**-0.5) for _ in range(count)]
        parts = {"norm": random(inputs).abs()} if kind in ("qkv", "gate_up", "lm_head") else {}
        for batch in (4, 16, 64):
            x = random(batch, inputs)
            out = random(batch, outputs)
            gbps = {}

            def library(x=x, weights=weights, parts=parts, gated=gated) -> None:
                for weight in weights:
                    linear_reference(x, weight, gated=gated, **parts)

            gbps["library"] = traffic_bytes * count / graph_seconds(library) / 1e9
            for tile in ROW_TILES:
                with survived(f"rows {kind} {batch} {tile}"):

                    def ours(x=x, out=out, tile=tile, weights=weights, parts=parts, gated=gated) -> None:
                        for weight in weights:
                            linear(
                                x,
                                weight,
                                out=out,
                                backend="triton",
                                pdl=True,
                                tile=tile,
                                gated=gated,
                                **parts,
                            )

                    gbps[str(tuple(tile))] = traffic_bytes * count / graph_seconds(ours) / 1e9
            log(stage="rows", matrix=kind, batch=batch, gbps=gbps)
            best = sorted(gbps, key=gbps.get, reverse=True)[:4]
            top = "  ".join(f"{gbps[name]:.0f} {name}" for name in best)
            print(f"{kind:<8} B={batch:<3} library {gbps['library']:.0f} | {top}", flush=True)


# --- engine --------------------------------------------------------------------------------------


def engine_seconds(
    model: Decoder, settings: KernelSettings, batch: int = 1, repeats: int = 4, tokens: int = NEW
) -> tuple[float, float]:
    """Median seconds of a step, and seconds from the engine's making to its first token."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    engine = DecodeEngine(model, backend="triton", settings=settings)
    prompts = random_prompts(model, batch)
    engine.start(prompts, PROMPT + NEW + 8)
    engine.decode(1)
    torch.cuda.synchronize()
    first = time.perf_counter() - begun
    times = []
    for _ in range(repeats):
        engine.start(prompts, PROMPT + NEW + 8)
        engine.decode(1)
        torch.cuda.synchronize()
        start = time.perf_counter()
        engine.decode(tokens)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / tokens)
    return sorted(times)[len(times) // 2], first


def report(log: Log, copy: float, name: str, batch: int, label: str, seconds: float, first: float) -> None:
    limit = copy * 1e9 / step_bytes(name, batch, PROMPT + NEW // 2)
    ratio = 1 / seconds / limit
    log(stage="engine", model=name, batch=batch, label=label, step_s=seconds, tokens_s=batch / seconds,
        limit_tokens_s=limit * batch, of_copy=ratio, first_token_s=first)  # fmt: skip
    print(
        f"{name:<11} B={batch:<3} {label:<34} {batch / seconds:8.1f} tok/s  {seconds * 1e6:7.0f} µs  "
        f"{ratio:.3f} of copy  first token {first:.2f} s",
        flush=True,
    )


def launch_modes(tiles: dict) -> dict[str, KernelSettings]:
    rule = {shape: gemv_rule(*shape) for name in CONFIGS for shape in matrices(name).values()}
    found = {
        "tiles of the rule, pdl": KernelSettings(pdl=True, tiles=rule),
        "default tiles, no pdl": KernelSettings(pdl=False),
        "default tiles, pdl": KernelSettings(pdl=True),
        "default tiles, attention in registers": KernelSettings(attention=AttentionTile()),
    }
    if tiles:
        found["best tiles, pdl"] = KernelSettings(pdl=True, tiles=tiles)
    return found


def attention_tiles(settings: KernelSettings) -> dict[str, KernelSettings]:
    shapes = [(AttentionTile(32, 4), 16), (AttentionTile(32, 4), 8), (AttentionTile(64, 8), 8)]
    shapes += [(AttentionTile(128, 4, 2), 1), (AttentionTile(128, 8, 2), 1), (AttentionTile(64, 4, 4), 1)]
    shapes += [(AttentionTile(128, 4, 2), 2), (AttentionTile(64, 4, 2), 4)]
    return {
        f"{tile.block} keys, {tile.stages} stages, {splits} splits, {tile.warps} warps": dataclasses.replace(
            settings, attention=tile, splits=splits
        )
        for tile, splits in shapes
    }


def strips_of(outputs: int, inputs: int, gated: bool) -> list[Strip]:
    """Those whose weights leave room for the programs of other kernels beside them."""
    shapes = ((8, 4), (8, 8), (16, 8), (8, 2)) if inputs <= 4096 else ()
    return [Strip(*shape, cores) for shape in shapes for cores in (False, True)]


def told(tile: Tile | Strip) -> tuple:
    return tile if isinstance(tile, tuple) else dataclasses.astuple(tile)


def strips(settings: KernelSettings, shape: tuple[int, int, bool]) -> dict[str, KernelSettings]:
    held = [gemv_tile(*shape, strips=True), gemv_tile(*shape), *strips_of(*shape)]
    held = list(dict.fromkeys(held))
    return {
        f"{shape[0]} × {shape[1]}: {told(tile)}": dataclasses.replace(
            settings, tiles={**settings.tiles, shape: tile}
        )
        for tile in held
    }


def stage_engine(log: Log, copy: float, tiles: dict, name: str) -> None:
    """One kind of setting after the other, each on top of the fastest so far."""
    model = random_model(name)
    best, least_s = KernelSettings(), float("inf")
    small = [shape for shape in matrices(name).values() if math.prod(shape[:2]) < 8e6]
    kinds = [lambda _: launch_modes(tiles), attention_tiles]
    kinds += [functools.partial(strips, shape=shape) for shape in small]
    for variants in kinds:
        for label, settings in variants(best).items():
            with survived(f"{name} {label}"):
                seconds, first = engine_seconds(model, settings)
                report(log, copy, name, 1, label, seconds, first)
                if seconds < least_s:
                    best, least_s = settings, seconds
    print(f"{name}: {best}", flush=True)
    profile(log, name, model, dataclasses.replace(best, pdl=False))


def profile(log: Log, name: str, model: Decoder, settings: KernelSettings) -> None:
    """Microseconds of each kernel in a step, by the profiler, one after the other."""
    with survived(f"profile {name}"):
        engine = DecodeEngine(model, backend="triton", settings=settings, graph=False)
        engine.start([list(range(PROMPT))], PROMPT + NEW)
        engine.decode(3)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            engine.decode(5)
            torch.cuda.synchronize()
        for event in sorted(found.key_averages(), key=lambda e: -e.device_time_total)[:6]:
            each = event.device_time_total / event.count
            print(f"   {event.key[:40]:<40} × {event.count / 5:5.0f} {each:7.2f} µs")
            log(
                stage="profile",
                model=name,
                kernel=event.key[:60],
                count=event.count,
                us=event.device_time_total / event.count,
            )


def stage_batches(log: Log, copy: float, name: str) -> None:
    """Several rows by PyTorch's products, and by our kernels without and with early starts."""
    model = random_model(name)
    kinds = {
        "PyTorch's products": KernelSettings(few_rows=False),
        "kernels, no pdl": KernelSettings(pdl=False),
        "kernels, pdl": KernelSettings(pdl=True),
    }
    for batch in (2, 4, 8, 16, 32, 64):
        for label, settings in kinds.items():
            with survived(f"{name} {batch} {label}"):
                seconds, first = engine_seconds(model, settings, batch, repeats=3, tokens=100)
                report(log, copy, name, batch, label, seconds, first)


ATTENTION_TILES = (
    AttentionTile(32, 4),
    AttentionTile(64, 4),
    AttentionTile(128, 4, 2),
    AttentionTile(64, 4, 3),
)


def stage_attention(log: Log, copy: float) -> None:
    """Llama-3-8B's heads over caches of many lengths: of tiles in registers and in shared memory."""
    for batch, context in ((1, 256), (1, 512), (1, 1024), (1, 4096), (1, 32768), (8, 4096), (64, 4096)):
        traffic_bytes = batch * 8 * context * 128 * 2 * 2
        layers = max(2, min(16, 4_000_000_000 // traffic_bytes))
        caches = [[random(batch, 8, context, 128) for _ in range(2)] for _ in range(layers)]
        gbps = {}
        for tile in ATTENTION_TILES:
            for splits in (1, 2, 4, 8, 16, 32, 64):
                if batch * 8 * splits > 1100 or splits > context // tile.block:
                    continue
                with survived(f"attention {batch} {context} {tile} {splits}"):
                    name = f"{tile.block} keys, {tile.stages} stages, {splits} splits"
                    gbps[name] = traffic_bytes / time_attention(caches, tile, splits) / 1e9
        log(stage="attention", batch=batch, context=context, gbps=gbps)
        for name in sorted(gbps, key=gbps.get, reverse=True)[:4]:
            us = traffic_bytes / gbps[name] / 1e3
            print(
                f"{batch:>2} × {context:<6} {name:<32} {us:7.1f} µs  {gbps[name] / copy:.2f} of copy",
                flush=True,
            )


def time_attention(caches: list[list[torch.Tensor]], tile: AttentionTile, splits: int) -> float:
    """Seconds of one layer's, in a chain over many; the last slot of each cache is the new token's."""
    batch, _, context, _ = caches[0][0].shape
    qkv, angles = random(batch, 48 * 128), random(context, 64)
    where = torch.full((batch,), context - 1, device=DEVICE)
    workspace, out = Workspace(batch, 32, 8, 128, splits, DEVICE), random(batch, 4096)

    def chain() -> None:
        for keys, values in caches:
            decode_attention(
                qkv,
                keys,
                values,
                where,
                angles,
                angles,
                workspace=workspace,
                out=out,
                backend="triton",
                pdl=True,
                tile=tile,
            )

    return graph_seconds(chain) / len(caches)


def planned(arguments: argparse.Namespace, log: Log, copy: float) -> list[tuple[str, Callable[[], object]]]:
    stages, names = arguments.stages.split(","), arguments.models.split(",")
    tiles: dict = {}
    work: list[tuple[str, Callable[[], object]]] = []
    if "check" in stages:
        work.append(("check", lambda: stage_check(log)))
    if "compile" in stages:
        work.append(("compile", stage_compile))
    if "linear" in stages:
        work.append(("linear", lambda: tiles.update(stage_linear(log, copy))))
    if "rows" in stages:
        work.append(("rows", lambda: stage_rows(log, copy)))
    if "engine" in stages:
        work += [
            (f"engine {name}", functools.partial(stage_engine, log, copy, tiles, name)) for name in names
        ]
    if "batches" in stages:
        work.append(("batches", functools.partial(stage_batches, log, copy, "llama3_8b")))
    if "attention" in stages:
        work.append(("attention", functools.partial(stage_attention, log, copy)))
    return work


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", default="check,compile,linear,rows,engine,batches,attention")
    parser.add_argument("--models", default="llama3_8b,qwen3_0.6b,llama2_7b")
    parser.add_argument("--limit-s", type=float, default=300, help="no stage begins after this")
    arguments = parser.parse_args()
    log = Log(arguments.out)
    copy = hardware.copy_bandwidth("cuda")
    print(f"{torch.cuda.get_device_name()}: copy {copy:.0f} GB/s", flush=True)
    log(stage="about", commit=commit(), copy_gbps=copy, device=torch.cuda.get_device_name())
    for label, run in planned(arguments, log, copy):
        if log.elapsed_s() > arguments.limit_s:
            print(f"--- {label} left out: {arguments.limit_s:.0f} s are over", flush=True)
            continue
        with survived(f"stage {label}"), torch.no_grad():
            run()
        torch.cuda.empty_cache()
        print(f"--- {label}: {log.elapsed_s():.0f} s since the start", flush=True)


if __name__ == "__main__":
    main()
