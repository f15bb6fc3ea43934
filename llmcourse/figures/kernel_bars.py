"""Recorded figures of the chapter's kernels and of serving: what was reached, the limit and the peer.

Rows are those of `recorded`; where a benchmark was never run, the picture says so.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.ticker import FuncFormatter, MaxNLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.recorded import TITLES

SIZES = tuple(f"d{d}_s{s}_{mask}" for d in (64, 128) for s in (4096, 16384) for mask in ("full", "causal"))
CACHES = ("b1_s32768", "b16_s4096", "b64_s4096")
FLASH_FORWARD = tuple(f"flash_fwd_{size}" for size in SIZES)
FLASH_BACKWARD = tuple(f"flash_bwd_{size}" for size in SIZES)
DECODE_ATTENTION = tuple(f"decode_attention_{cache}" for cache in CACHES)
PAGED_ATTENTION = tuple(f"paged_attention_{cache}" for cache in CACHES)
SIZE_WORDS = {"d": "heads of {}", "s": "{} tokens", "b": "batch {}"}  # the letters of `SIZES` and `CACHES`
WORDS = 2.0  # inches behind the bars, for what they say
SAME = 0.02  # limits that differ by less are one: they were measured in one run, as far as noise allows
WRAPPED, SUBTITLE_LINE = 112, 0.19  # letters in a line of the subtitle; inches of each line but the first
LABELS = {
    "serve_qwen3_0.6b_256": "256 requests",
    "serve_qwen3_0.6b_256_vs_transformers": "64 requests",
    "serve_chunked_prefill_p99": "with long documents",
    "serve_chunked_prefill_p99_short_prompts": "prompts as they are",
}
SERVING = ("serve_qwen3_0.6b_256", "serve_qwen3_0.6b_256_vs_transformers")
CHUNKED_PREFILL = ("serve_chunked_prefill_p99", "serve_chunked_prefill_p99_short_prompts")


def differences(names: Sequence[str]) -> dict[str, str]:
    """What is left of each name without the beginning that all share, whole words only, in spaces."""
    words = [name.split("_") for name in names]
    shared = 0
    while len(names) > 1 and all(len(w) > shared + 1 and w[shared] == words[0][shared] for w in words):
        shared += 1
    return {name: " ".join(word[shared:]) for name, word in zip(names, words, strict=True)}


def spelled(label: str) -> str:
    """`d64 s4096 full` as `heads of 64, 4,096 tokens, full`; words that are no sizes stay together."""
    words = re.sub(r"\b([dsb])(\d+)\b ?", lambda m: f"{_size_words(*m.groups())}, ", label)
    return words.removesuffix(", ")


def _size_words(letter: str, size: str) -> str:
    return SIZE_WORDS[letter].format(f"{int(size):,}")


def labels_of(rows: Sequence[dict]) -> list[str]:
    """What tells each row apart, and its device where there are several."""
    short = differences(tuple(dict.fromkeys(row["name"] for row in rows)))
    devices = {row["device"] for row in rows}
    words = {name: LABELS.get(name) or spelled(label) for name, label in short.items()}
    return [words[row["name"]] + (f", {row['device']}" if len(devices) > 1 else "") for row in rows]


def origin(rows: Sequence[dict]) -> str:
    """`recorded on NVIDIA H200, 2026-11-25`."""
    devices = ", ".join(dict.fromkeys(row["device"] for row in rows))
    dates = sorted({row["date"] for row in rows})
    return f"recorded on {devices}, {dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'}"


def limits_of(rows: Sequence[dict]) -> str:
    """The limit of rows, rounded: `680`, or `680 to 787` where they were measured against several."""
    limits = sorted(row["limit"] for row in rows if row["limit"])
    if not limits:
        return ""
    low, high = limits[0], limits[-1]
    return f"{low:,.0f}" if high <= (1 + SAME) * low else f"{low:,.0f} to {high:,.0f}"


def compare_limits(groups: Mapping[str, Sequence[dict]]) -> str:
    """Whether the shares of several figures may be compared: only where all have one limit.

    Args:
        groups: rows of one unit, by what the figure shows.
    """
    told = {name: limits_of(rows) for name, rows in groups.items() if limits_of(rows)}
    if not told:
        return "No limit is recorded yet."
    every = [row for rows in groups.values() for row in rows if row["limit"]]
    unit = every[0]["unit"]
    if " to " not in limits_of(every):
        return f"One limit for all: {limits_of(every)} {unit}, so percentages can be compared."
    each = ", ".join(f"{name} {limit}" for name, limit in told.items())
    return f"The limits differ ({each} {unit}): between figures compare {unit}, not percentages."


def plot_kernels(rows: Sequence[dict], title: str, names: Sequence[str] = ()) -> look.Picture:
    """Bars of what was reached; | marks the limit of each, ◆ its peer, and words say the shares.

    Args:
        rows: as `recorded.all_of` gives them.
        names: what should have been recorded, to say what is missing.

    Raises:
        ValueError: rows of different units.
    """
    units = {row["unit"] for row in rows}
    if len(units) > 1:
        raise ValueError(f"rows must have one unit, got {', '.join(sorted(units))}; draw them apart")
    missing = [name for name in names if name not in {row["name"] for row in rows}]
    if not rows:
        return nothing_recorded(title, missing)
    subtitle = subtitle_of(rows)
    height = 1.15 + 0.36 * len(rows) + (0.25 if missing else 0.0) + SUBTITLE_LINE * subtitle.count("\n")
    with look.style():
        picture = look.Picture(look.WIDTH, height)
        look.heading(picture, title, subtitle)
        below = 0.40 + (0.25 if missing else 0.0)
        left = 0.04 + 0.0084 * max(map(len, labels_of(rows)))
        axes = picture.add_axes((left, below / height, 0.985 - left, (0.36 * len(rows)) / height))
        _draw_bars(axes, rows)
        if missing:
            style = {"size": 9, "color": look.MUTED, "va": "bottom"}
            picture.text(0.012, 0.05 / height, look.shorten(missing_words(missing), 120), **style)
        picture.alt = f"{title}, {origin(rows)}. " + "; ".join(_told(row) for row in rows) + "."
    return picture


def subtitle_of(rows: Sequence[dict]) -> str:
    """Where rows come from, and what their marks stand for; in several lines where one is too short."""
    named = dict.fromkeys(row["limit_name"] for row in rows if row["limit"])
    limits = ", ".join(f"{n}: {limits_of([r for r in rows if r['limit_name'] == n])}" for n in named)
    peers = [f"◆ {peer}" for peer in dict.fromkeys(row["peer"] for row in rows if row["peer_value"])]
    parts = [origin(rows), *([f"│ {limits}"] if limits else []), *([" or ".join(peers)] if peers else [])]
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 <= WRAPPED:
            lines[-1] += f" · {part}"
        else:
            lines += textwrap.wrap(part, WRAPPED)
    return "\n".join(lines)


def _draw_bars(axes, rows: Sequence[dict]) -> None:
    widest = max(max(row["value"], row["limit"] or 0, row["peer_value"] or 0) for row in rows)
    inches = axes.get_position().width * look.WIDTH
    end = widest * inches / (inches - WORDS)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, end), xlabel=rows[0]["unit"])
    for place, row in enumerate(rows):
        axes.barh(place, row["value"], height=0.62, color=look.SERIES[0])
        if row["limit"]:
            limit = [row["limit"]] * 2
            axes.plot(limit, [place - 0.42, place + 0.42], color=look.INK, linewidth=1.6, zorder=4)
        if row["peer_value"]:
            style = {"color": look.SERIES[3], "markeredgecolor": look.INK, "markersize": 6, "zorder": 5}
            axes.plot(row["peer_value"], place, "D", **style)
        words = (
            f"{row['value']:,.0f}{_shares(row)}"
            if row["value"] >= 10
            else f"{row['value']:.2f}{_shares(row)}"
        )
        axes.text(widest + 0.018 * end, place, words, va="center", size=9)
    axes.set_yticks(range(len(rows)), [readable(label) for label in labels_of(rows)])
    axes.set_xticks([tick for tick in MaxNLocator(6).tick_values(0, widest) if tick <= widest])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}"))
    look.bare(axes, "left")
    look.fix_label(axes)


def _shares(row: dict) -> str:
    limit = f" · {row['ratio_limit']:.0%} of │" if row["ratio_limit"] is not None else ""
    peer = f" · {row['ratio_peer']:.2f} × ◆" if row["ratio_peer"] is not None else ""
    return limit + peer


def _told(row: dict) -> str:
    limit = f", {row['ratio_limit']:.0%} of {row['limit_name']}" if row["ratio_limit"] is not None else ""
    peer = f", {row['ratio_peer']:.2f} × {row['peer']}" if row["ratio_peer"] is not None else ""
    name = TITLES.get(row["name"], row["name"])
    return f"{name} {row['value']:,.4g} {row['unit']}{limit}{peer}"


def missing_words(names: Sequence[str]) -> str:
    """What was never recorded, by the first of its names, and how it would be."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"Not recorded yet: {names[0]}{more}; the benchmarks record them on a GPU."


def nothing_recorded(title: str, missing: Sequence[str]) -> look.Picture:
    """A picture that says what is missing, where nothing is there to be drawn."""
    words = missing_words(missing) if missing else "Nothing is recorded yet; the benchmarks do it on a GPU."
    with look.style():
        picture = look.Picture(look.WIDTH, 1.0, alt=f"{title}. {words}")
        look.heading(picture, title, look.shorten(words, 105))
    return picture
