"""Benchmark results that were stored earlier, on this machine or another, and a chart of them.

`benchmarks/results/<device>.jsonl` holds one JSON object a line. A checkout has them; an installed
package does not, and then there is nothing to show.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from llmcourse.figures import style as look

# What readers call benchmarks of serving; the README's table has the same words.
TITLES = {
    "serve_qwen3_0.6b_256": "Serving 256 requests, Qwen3-0.6B's shape",
    "serve_qwen3_0.6b_256_vs_transformers": "Serving 64 requests, Qwen3-0.6B's shape",
    "serve_chunked_prefill_p99": "Whole prompts or pieces, with long documents between",
    "serve_chunked_prefill_p99_short_prompts": "Whole prompts or pieces, prompts as they are",
}
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def latest(folder: Path = RESULTS) -> dict[str, dict[str, dict]]:
    """The latest stored result of every benchmark, by its name and then by device; all files are read once.

    Raises:
        ValueError: a line is no result in JSON; the message names the file and the line.
    """
    found: dict[str, dict[str, dict]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path.name}, line {number}, is not JSON: {error}") from error
            if not isinstance(row, dict) or not {"name", "device"} <= set(row):
                raise ValueError(f"{path.name}, line {number}, is no result with a name and a device")
            found.setdefault(row["name"], {})[row["device"]] = row
    return found


def recorded(name: str, folder: Path = RESULTS) -> list[dict]:
    """Those of one benchmark, from every device that has one; raises as `latest`."""
    return all_of([name], folder)


def all_of(names: Iterable[str], folder: Path = RESULTS) -> list[dict]:
    """Those of several benchmarks, one after the other; raises as `latest`."""
    found = latest(folder)
    return [row for name in names for row in found.get(name, {}).values()]


def raw_rows(stem: str, folder: Path = RESULTS) -> list[dict]:
    """What figures were made of: the lines of `raw/<stem>_<device>.jsonl`, of every device that has some.

    Raises:
        ValueError: a line is no row in JSON; the message names the file and the line.
    """
    rows = []
    for path in sorted((folder / "raw").glob(f"{stem}_*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path.name}, line {number}, is not JSON: {error}") from error
    return rows


def told(row: dict) -> str:
    """A stored result: the figure and its machine, and a line for each thing it is compared with.

    Where a row has them, `ours_ms` and `products_ms` are told, too, and what each way held in memory.
    """
    parts = []
    if row["ratio_limit"] is not None:
        parts.append(f"{row['ratio_limit']:.0%} of {row['limit_name']}")
    if row["ratio_peer"] is not None:
        parts.append(f"{row['ratio_peer']:.2f} × {row['peer']}")
    if "ours_ms" in row:
        parts.append(f"{row['ours_ms']:.1f} ms, its products alone {row['products_ms']:.1f} ms")
    if "held_bytes" in row:
        parts.append(", ".join(f"{name} {held / 1e9:.2f} GB" for name, held in row["held_bytes"].items()))
    value = f"{row['value']:,.0f}" if row["value"] >= 10 else f"{row['value']:.2f}"
    name = TITLES.get(row["name"], row["name"])
    figure = f"{name}: {value} {row['unit']} on {row['device']}, recorded {row['date']}"
    return "\n    ".join([figure, *parts])


def plot_speeds(speeds: dict[str, float], title: str, *, limit: str, unit: str) -> look.Picture:
    """Bars of speeds with the share of the limit that each reaches.

    Args:
        speeds: by what was measured, in the order to draw.
        limit: which of them is the limit.
        unit: of all of them.

    Raises:
        ValueError: `limit` is none of the speeds, or there are none.
    """
    if limit not in speeds:
        raise ValueError(
            f"limit must be one of {', '.join(speeds) or 'the speeds (none given)'}, got {limit!r}"
        )
    height = 0.8 + 0.42 * len(speeds)
    with look.style():
        picture = look.Picture(height=height)
        look.heading(picture, title)
        axes = picture.add_axes((0.28, 0.04, 0.70, 1 - 0.55 / height))
        for row, (name, value) in enumerate(speeds.items()):
            axes.barh(row, value, color=look.LINE if name == limit else look.SERIES[0], height=0.62)
            share = "" if name == limit else f", {value / speeds[limit]:.0%} of the limit"
            axes.text(value, row, f"  {value:,.0f} {unit}{share}", va="center")
        axes.set_yticks(range(len(speeds)), [look.readable(name) for name in speeds])
        axes.set_ylim(len(speeds) - 0.5, -0.5)
        axes.set_xlim(0, 1.6 * max(speeds.values()))
        axes.set_xticks([])
        look.bare(axes, "top", "right", "bottom")
    picture.alt = (
        f"{title}. " + "; ".join(f"{name} {value:,.0f} {unit}" for name, value in speeds.items()) + "."
    )
    return picture
