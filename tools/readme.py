"""The README's table of what the GPU reached: `python -m tools.readme` writes it from benchmarks/results.

A line is one benchmark or several of a kind, each by its latest result; where there are several it shows the
least and the most, so that a loss is never left out. The ratios are those to the limit and to the peer that
were measured in the same process.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

from llmcourse.figures.recorded import latest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DEVICE = "NVIDIA H200"
BEGIN, END = "<!-- python -m tools.readme writes from here -->", "<!-- to here -->"
HEAD = ("what", "reached", "share of its limit", "× the peer", "the peer")
TIMES = ("speed-up", "times as fast", "×")  # units that say nothing beside the ratio to the peer

DOMAINS = ("prose", "poetry", "code")

# What a line says, and the benchmarks that it is of: names, with * for any text and [!…] as in file names.
LINES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Decoding, Llama-3-8B's shape, bf16, one text", ("decode_llama3_8b_bf16_b1",)),
    ("Decoding, Llama-2-7B's shape", ("decode_llama2_7b_bf16_b1",)),
    ("Decoding, Qwen3-0.6B's shape", ("decode_qwen3_0.6b_bf16_b1",)),
    ("Decoding, Llama-3-8B's shape, int8 weights", ("decode_llama3_8b_int8_b1",)),
    ("Decoding, Llama-3-8B's shape, int4 weights", ("decode_llama3_8b_int4_b1",)),
    ("FlashAttention forward, 8 sizes", ("flash_fwd_*",)),
    ("FlashAttention backward, 8 sizes", ("flash_bwd_*",)),
    ("Decode attention, 3 sizes", ("decode_attention_*",)),
    ("The same over a paged cache", ("paged_attention_*",)),
    ("Serving 256 requests, Qwen3-0.6B's shape", ("serve_qwen3_0.6b_256",)),
    ("The same, 64 requests", ("serve_qwen3_0.6b_256_vs_transformers",)),
    (
        "Speculation, one text: prose, verse, code, greedy and drawn",
        ("speculative_*_b1", "speculative_*_b1_sampled"),
    ),
    ("Speculation, 8 and 32 texts at once", ("speculative_code_b8", "speculative_code_b32")),
    ("Medusa, one text: prose, verse, code", ("medusa_*_b1",)),
    (
        "Early exit, one text: prose, verse, code",
        ("early_exit_prose_b1", "early_exit_verse_b1", "early_exit_code_b1"),
    ),
    ("int4 linear, 3 shapes, 1 to 64 rows", ("linear_int4_*_m[1-6]", "linear_int4_*_m[1-6][0-9]")),
    ("The same", ("linear_int4_*_vs_tinygemm",)),
    ("int8 linear, 3 shapes, 1 to 64 rows", ("linear_int8_*",)),
    ("int8 product of W8A8, 4,096 and 8,192 rows", ("linear_w8a8_product_*",)),
    ("W8A8 linear, 4,096 and 8,192 rows", ("linear_w8a8_n*_m4096", "linear_w8a8_n*_m8192")),
    ("W8A8 linear, 1 to 64 rows", ("linear_w8a8_n*_m[1-6]", "linear_w8a8_n*_m[1-6][0-9]")),
    ("LLM.int8 linear, 4,096 and 8,192 rows", ("linear_llm_int8_n*_m4096", "linear_llm_int8_n*_m8192")),
    ("LLM.int8 linear, 1 to 64 rows", ("linear_llm_int8_n*_m[1-6]", "linear_llm_int8_n*_m[1-6][0-9]")),
    ("GPTQ, Llama-3-8B's shape", ("gptq_llama3_8b",)),
    ("Distillation loss, 128,256 words, 12 cases", ("kd_loss_*_n*",)),
    ("Distillation step, student 102 M, teacher 398 M", ("distill_step_100m_400m*",)),
    ("Drafts that stand, distilled from base", tuple(f"distilled_draft_acceptance_{d}" for d in DOMAINS)),
    ("The same, from a target of 923 M", ("distilled_draft_acceptance_*_923m",)),
    (
        "int4 and distilled drafts: step times of Llama-3-8B's shape, tokens a step of the 923 M pair",
        ("pipeline_llama3_8b",),
    ),
)


def chosen(patterns: Sequence[str], device: str = DEVICE, results: dict | None = None) -> list[dict]:
    """The latest results on a device whose names fit a pattern, in the order of the patterns.

    Raises:
        ValueError: a pattern fits none.
    """
    every = {name: rows[device] for name, rows in (results or latest()).items() if device in rows}
    found: dict[str, dict] = {}
    for pattern in patterns:
        fits = fnmatch.filter(every, pattern)
        if not fits:
            raise ValueError(
                f"pattern must fit a benchmark recorded on {device}, got {pattern!r}; correct LINES"
            )
        found |= {name: every[name] for name in fits}
    return list(found.values())


def amount(value: float) -> str:
    """A figure in at most four digits that mean something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def span(values: Sequence[float], show) -> str:
    """The least and the most of several, one of them where they read the same."""
    ends = [show(value) for value in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def line(what: str, rows: Sequence[dict]) -> tuple[str, ...]:
    """The cells of a line.

    Raises:
        ValueError: the rows are not of one unit, one limit (or none) and one peer (or none).
    """
    unit, limit, peer = (_one(what, rows, key) for key in ("unit", "limit_name", "peer"))
    reached = "" if unit in TIMES else f"{span([row['value'] for row in rows], amount)} {unit}"
    share = "–"
    if all(row["ratio_limit"] is not None for row in rows):
        percent = span([100 * row["ratio_limit"] for row in rows], lambda value: f"{value:.0f}")
        share = f"{percent} % of {limit.split(' over the bytes')[0]}"
    times = "–" if peer is None else span([row["ratio_peer"] for row in rows], lambda value: f"{value:.2f}")
    targets = dict.fromkeys(row["target"] for row in rows if "target" in row)
    if targets:
        what = f"{what} ({'; '.join(targets)})"
    return what, reached, share, times, (peer or "–").replace("|", "\\|")


def _one(what: str, rows: Sequence[dict], key: str) -> str | None:
    values = dict.fromkeys(row[key] for row in rows)
    if len(values) > 1:
        found = ", ".join(map(str, values))
        raise ValueError(f"{what!r} must have one {key}, got {found}; make several lines of it")
    return next(iter(values))


def table(device: str = DEVICE, results: dict | None = None) -> str:
    """The table in Markdown, with the device, the dates and the versions that it is of."""
    results = results or latest()
    every = [(what, chosen(patterns, device, results)) for what, patterns in LINES]
    rows = [row for _, several in every for row in several]
    dates = sorted(row["date"] for row in rows)
    versions = {
        name: " and ".join(sorted({row["versions"][name] for row in rows}))
        for name in ("torch", "triton", "cuda")
    }
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    cells = [HEAD, ("---", "---:", "---:", "---:", "---"), *(line(*one) for one in every)]
    return "\n".join(
        [
            f"On one {device}, {dates[0]} to {dates[-1]}, {told}:",
            "",
            *(f"| {' | '.join(row)} |" for row in cells),
        ]
    )


def renewed(text: str, content: str) -> str:
    """The README with this content between its two marks.

    Raises:
        ValueError: a mark is missing, or there are several.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"README.md must hold {BEGIN!r} and then {END!r}, once each; put them back")
    return f"{text.split(BEGIN)[0]}{BEGIN}\n\n{content}\n\n{END}{text.split(END)[1]}"


def main() -> int:
    README.write_text(renewed(README.read_text(encoding="utf-8"), table()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
