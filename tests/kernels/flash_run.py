"""Many drawn configurations of `flash_attention` in one run, with a row of each for the record."""

import argparse
import concurrent.futures
import contextlib
import datetime
import itertools
import json
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from llmcourse import hardware
from tests.kernels.contract import DEVICE
from tests.kernels.flash_configurations import Config, drawn, ratios


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Holds drawn configurations to the contract.")
    parser.add_argument("count", type=int, help="how many, of the seeds from 0 on")
    parser.add_argument("--processes", type=int, default=1, help="that share the compiling among them")
    parser.add_argument("--out", type=Path, help="file that gets a row of JSON for each")
    given = parser.parse_args(arguments)
    rows = []
    with given.out.open("w", encoding="utf-8") if given.out else contextlib.nullcontext() as file:
        for row in itertools.chain([about()], measured(given.count, given.processes)):
            rows.append(row)
            if file:
                print(json.dumps(row), file=file, flush=True)
            if not row.get("kept", True):
                print(json.dumps(row), flush=True)
    print(summary(rows[1:]))
    raise SystemExit(not all(row["kept"] for row in rows[1:]))


def about() -> dict[str, object]:
    fingerprint = hardware.fingerprint(DEVICE)
    return {
        "stage": "about",
        "device": fingerprint.pop("device"),
        "versions": fingerprint,
        "date": datetime.date.today().isoformat(),
        "note": "ratio: error over that of PyTorch's attention in the same dtype, both against float64, with "
        "1e-5 and what rounding may leave added to twice the latter; 2 is allowed",
    }


def measured(count: int, processes: int) -> Iterator[dict[str, object]]:
    """A row for each seed below count, as they come."""
    groups = compiled_together(range(count))
    if processes == 1:
        for group in groups:
            yield from map(row_of, group)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        running = [pool.submit(rows_of, group) for group in groups]
        for job in concurrent.futures.as_completed(running):
            yield from job.result()


def compiled_together(seeds: Iterable[int]) -> list[list[int]]:
    """Seeds whose calls take the same kernels, so that one process compiles them; the largest first."""
    groups = defaultdict(list)
    for seed in seeds:
        c = drawn(seed)
        scoring = (c.scoring.causal, c.scoring.window is None, c.scoring.softcap is None)
        bias = c.bias and (c.bias.own[2], c.bias.wide)
        groups[c.dtype, c.head_dim, c.tile, scoring, bias, c.sequences is None].append(seed)
    return sorted(groups.values(), key=len, reverse=True)


def rows_of(seeds: list[int]) -> list[dict[str, object]]:
    return [row_of(seed) for seed in seeds]


def row_of(seed: int) -> dict[str, object]:
    config = drawn(seed)
    row = {"stage": "check", "seed": seed, **described(config)}
    with launched() as kernels:
        try:
            found = ratios(config)
        except Exception as failure:  # a row of its own, and the others go on
            return row | {"kept": False, "failure": f"{type(failure).__name__}: {failure}"[:300]}
    kept = all(ratio <= 2 for ratio in found.values())
    found = {name: float(f"{ratio:.3g}") for name, ratio in found.items() if name != "log_sum_exp" or ratio}
    return row | {"kept": kept, "ratios": found, "kernels": list(dict.fromkeys(kernels))}


def described(config: Config) -> dict[str, object]:
    return {
        "dtype": str(config.dtype).removeprefix("torch."),
        "shape": [config.batch, config.num_heads, config.num_kv_heads, config.queries, config.keys],
        "head_dim": config.head_dim,
        "kind": "bias" if config.bias else "plain" if config.sequences is None else "packed",
    }


@contextlib.contextmanager
def launched() -> Iterator[list[str]]:
    """The names of the kernels that are launched inside join the list."""
    names = []

    def spied(run):
        def spy(self, *args, **kwargs):
            names.append(self.fn.__name__)
            return run(self, *args, **kwargs)

        return spy

    with (
        mock.patch.object(JITFunction, "run", spied(JITFunction.run)),
        mock.patch.object(InterpretedFunction, "run", spied(InterpretedFunction.run)),
    ):
        yield names


def summary(rows: list[dict[str, object]]) -> str:
    """How many were checked, the worst of each dtype, and how many calls each kernel had a part in."""
    failed = sum(not row["kept"] for row in rows)
    lines = [f"{len(rows)} configurations, {failed} beyond their bounds"]
    for dtype in sorted({row["dtype"] for row in rows}):
        all_ratios = [
            (ratio, name, row["seed"])
            for row in rows
            if row["dtype"] == dtype
            for name, ratio in row.get("ratios", {}).items()
        ]
        worst, name, seed = max(all_ratios, default=(float("nan"), "none", None))
        lines.append(f"{dtype}: worst ratio of errors {worst:.2f} (of 2 allowed), {name} of seed {seed}")
    calls = Counter(kernel for row in rows for kernel in row.get("kernels", []))
    return "; ".join([*lines, ", ".join(f"{kernel} in {count}" for kernel, count in calls.most_common())])
