"""The course's methods one upon the other: tokens a second after each step, beside its own roofline.

Rows are lines of JSON of `benchmarks/results/raw/pipeline_<device>.jsonl`, in the order of the steps:

    {"step": "int4 weights", "tokens_per_s": 310.0, "limit": 420.0, "limit_name": "copy over the bytes read",
     "quality": 3.12, "quality_name": "nats a token", "model": "llama3_8b", "batch": 1,
     "device": "NVIDIA H200", "date": "2026-12-01"}

`limit` is the roofline's tokens a second for this very step, and `quality` what text costs after it; each is
null where there is none. A live run makes rows of the same kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import FuncFormatter, MaxNLocator

from llmcourse.figures import style as look
from llmcourse.figures.fonts import readable
from llmcourse.figures.kernel_bars import nothing_recorded, origin

MOST_STEPS = 12
WORDS = 3.0  # inches behind the bars, for what they say
ROW = 0.40


@dataclass(frozen=True)
class PipelineStep:
    """What has been reached with a method on top of all before it.

    Attributes:
        speed: tokens a second.
        limit: the roofline's; None where there is none.
        quality: such as nats a token; None where it was not measured.
        times: the first step's speed.
    """

    name: str
    speed: float
    limit: float | None
    quality: float | None
    times: float

    @property
    def share(self) -> float | None:
        """Of the limit."""
        return self.speed / self.limit if self.limit else None


def pipeline_steps(rows: Iterable[Mapping]) -> list[PipelineStep]:
    """Steps in the order in which they were first recorded; the last row of each counts.

    Raises:
        ValueError: a row that is none; the message says which.
    """
    found: dict[str, tuple[float, float | None, float | None]] = {}
    for number, row in enumerate(rows, start=1):
        try:
            speed = _positive("tokens_per_s", row["tokens_per_s"])
            limit = None if row.get("limit") is None else _positive("limit", row["limit"])
            quality = None if row.get("quality") is None else float(row["quality"])
            if quality is not None and not math.isfinite(quality):
                raise ValueError(f"quality must be finite, got {quality}")
            found[str(row["step"])] = speed, limit, quality
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"row {number}: not a step ({error!r}); record it again") from error
    first = next(iter(found.values()))[0] if found else 1.0
    return [PipelineStep(name, *numbers, numbers[0] / first) for name, numbers in found.items()]


def _positive(name: str, value: object) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return number


def plot_pipeline(
    rows: Sequence[Mapping],
    title: str = "One method upon the other",
    *,
    steps: Sequence[str] = (),
    live: bool = False,
) -> look.Picture:
    """A bar for each step; │ is the roofline of that step, words say shares, gains and quality.

    Args:
        rows: as above, of one model and batch on one device.
        steps: that should have been recorded, to say what is missing.
        live: rows were measured just now, and the picture does not call them recorded.

    Raises:
        ValueError: rows that are none, of several devices, models or batches, or more steps than fit.
    """
    found = pipeline_steps(rows)
    missing = [name for name in steps if name not in {step.name for step in found}]
    if not found:
        return nothing_recorded(title, missing)
    for name in ("device", "model", "batch", "quality_name"):
        kinds = {str(row[name]) for row in rows if row.get(name) is not None}
        if len(kinds) > 1:
            raise ValueError(f"rows must be of one {name}, got {', '.join(sorted(kinds))}; draw them apart")
    if len(found) > MOST_STEPS:
        raise ValueError(f"steps must be at most {MOST_STEPS}, got {len(found)}; draw some of them")
    below = 0.48 + 0.22 * bool(missing)
    height = 0.85 + ROW * len(found) + below
    with look.style():
        picture = look.Picture(look.WIDTH, height)
        look.heading(picture, title, look.shorten(_origin(rows, live), 105))
        left = 0.03 + 0.0105 * min(26, max(len(step.name) for step in found))
        place = (left, below / height, 0.985 - left, ROW * len(found) / height)
        axes = picture.add_axes(place)
        _draw(axes, found, _quality_name(rows))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            style = {"size": 9, "color": look.MUTED, "va": "bottom"}
            picture.text(0.012, 0.05 / height, f"Not recorded yet: {missing[0]}{more}.", **style)
        told = "; ".join(_told(step, _quality_name(rows)) for step in found)
        picture.alt = f"{title}, {_origin(rows, live)}. {told}."
    return picture


def _origin(rows: Sequence[Mapping], live: bool) -> str:
    first = rows[0]
    parts = [f"measured on {first['device']}" if live else origin(rows)]
    parts += [str(first["model"])] if first.get("model") else []
    parts += [f"batch {first['batch']:,}"] if first.get("batch") else []
    limits = ", ".join(dict.fromkeys(row["limit_name"] for row in rows if row.get("limit_name")))
    return " · ".join([*parts, *([f"│ {limits}"] if limits else [])])


def _quality_name(rows: Sequence[Mapping]) -> str:
    return next((row["quality_name"] for row in rows if row.get("quality_name")), "")


def _draw(axes, steps: Sequence[PipelineStep], quality: str) -> None:
    widest = max(max(step.speed, step.limit or 0) for step in steps)
    inches = axes.get_position().width * look.WIDTH
    end = widest * inches / (inches - WORDS)
    axes.set(ylim=(len(steps) - 0.5, -0.5), xlim=(0, end), xlabel="tokens a second")
    for place, step in enumerate(steps):
        axes.barh(place, step.speed, height=0.62, color=look.SERIES[0])
        if step.limit:
            edge = [place - 0.42, place + 0.42]
            axes.plot([step.limit] * 2, edge, color=look.INK, linewidth=1.6, zorder=4)
        axes.text(widest + 0.018 * end, place, _words(step, quality), va="center", size=9)
    names = [readable(look.shorten(step.name, 26)) for step in steps]
    axes.set_yticks(range(len(steps)), names)
    axes.set_xticks([tick for tick in MaxNLocator(5).tick_values(0, widest) if tick <= widest])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}"))
    look.bare(axes, "left")
    look.fix_label(axes)


def _words(step: PipelineStep, quality: str) -> str:
    speed = f"{step.speed:,.0f}" if step.speed >= 10 else f"{step.speed:.2f}"
    share = f" · {step.share:.0%} of │" if step.share is not None else ""
    cost = f" · {step.quality:.3f} {quality}".rstrip() if step.quality is not None else ""
    return f"{speed} · {step.times:.2f}×{share}{cost}"


def _told(step: PipelineStep, quality: str) -> str:
    share = f", {step.share:.0%} of its limit" if step.share is not None else ""
    cost = f", {step.quality:.3f} {quality}".rstrip() if step.quality is not None else ""
    return f"{step.name} {step.speed:,.4g} tokens a second, {step.times:.2f} times the first{share}{cost}"
