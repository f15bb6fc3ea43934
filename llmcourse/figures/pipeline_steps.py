"""The course's methods one upon the other: tokens a second after each step, beside its own roofline.

Rows are lines of JSON of `benchmarks/results/raw/pipeline_<device>.jsonl`, in the order of the steps, what
`llmcourse.pipeline.Stage.row` gives with the names of the models and of the device:

    {"stage": "low-bit weights", "texts": 1, "tokens_per_s": 310.0, "limit": 420.0, "kl": 0.012,
     "target": "base", "drafter": "draft", "scheme": "int4", "device": "NVIDIA H200", "date": "2026-12-01"}

`limit` is the roofline's tokens a second for this very step, and `kl` how far distributions moved from those
of the target, in nats; each is null where there is none. Other lines of that file, of larger shapes, are
steps of nothing that writes text, and `runs` leaves them out. A live run makes rows of the same kind.
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
ONE = ("target", "drafter", "scheme", "dtype")  # of a run, on one device
WORDS = 3.0  # inches behind the bars, for what they say
FAR_APART = 300  # times the slowest, from which bars need an axis of powers of ten
LEAST_BAR = 1.5  # times the number at which such an axis begins
ROW = 0.40


@dataclass(frozen=True)
class PipelineStep:
    """What has been reached with a method on top of all before it.

    Attributes:
        speed: tokens a second.
        limit: the roofline's; None where there is none.
        kl: nats a token; None where it was not measured.
        times: the first step's speed.
    """

    name: str
    speed: float
    limit: float | None
    kl: float | None
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
            kl = None if row.get("kl") is None else float(row["kl"])
            if kl is not None and not math.isfinite(kl):
                raise ValueError(f"kl must be finite, got {kl}")
            found[str(row["stage"])] = speed, limit, kl
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"row {number}: not a step ({error!r}); record it again") from error
    first = next(iter(found.values()))[0] if found else 1.0
    return [PipelineStep(name, *numbers, numbers[0] / first) for name, numbers in found.items()]


def runs(rows: Iterable[Mapping]) -> list[list[Mapping]]:
    """Rows of one device and one set of models each, in the order in which they were first recorded."""
    found: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if "tokens_per_s" in row:
            found.setdefault(tuple(row.get(name) for name in ("device", *ONE)), []).append(row)
    return list(found.values())


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
    """A bar for each step; │ is the roofline of that step, words say shares, gains and KL.

    Where the largest number is hundreds of times the smallest the axis counts powers of ten, from one so far
    below the slowest step that it has a bar, too.

    Args:
        rows: as above, of one of `runs`.
        steps: that should have been recorded, to say what is missing.
        live: rows were measured just now, and the picture does not call them recorded.

    Raises:
        ValueError: rows that are none, of several devices or models, or more steps than fit.
    """
    found = pipeline_steps(rows)
    missing = [name for name in steps if name not in {step.name for step in found}]
    if not found:
        return nothing_recorded(title, missing)
    for name in ("device", *ONE):
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
        _draw(axes, found)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            style = {"size": 9, "color": look.MUTED, "va": "bottom"}
            picture.text(0.012, 0.05 / height, f"Not recorded yet: {missing[0]}{more}.", **style)
        told = "; ".join(map(_told, found))
        picture.alt = f"{title}, {_origin(rows, live)}. {told}."
    return picture


def _origin(rows: Sequence[Mapping], live: bool) -> str:
    first = rows[0]
    parts = [f"measured on {first['device']}" if live else origin(rows)]
    parts += [str(first["target"])] if first.get("target") else []
    parts += [f"drafts by {first['drafter']}"] if first.get("drafter") else []
    limited = any(row.get("limit") is not None for row in rows)
    return " · ".join([*parts, *(["│ roofline of each step"] if limited else [])])


def _draw(axes, steps: Sequence[PipelineStep]) -> None:
    widest = max(max(step.speed, step.limit or 0) for step in steps)
    slowest = min(step.speed for step in steps)
    start = 10 ** math.floor(math.log10(slowest / LEAST_BAR)) if widest > FAR_APART * slowest else 0
    words = WORDS / (axes.get_position().width * look.WIDTH)  # of the axes' width, behind all bars
    if start:
        axes.set_xscale("log")
        end = start * (widest / start) ** (1 / (1 - words))
        ticks = [10.0**n for n in range(round(math.log10(start)), math.floor(math.log10(widest)) + 1)]
    else:
        end = widest / (1 - words)
        ticks = [tick for tick in MaxNLocator(5).tick_values(0, widest) if tick <= widest]
    axes.set(ylim=(len(steps) - 0.5, -0.5), xlim=(start, end), xlabel="tokens a second")
    for place, step in enumerate(steps):
        axes.barh(place, step.speed - start, left=start, height=0.62, color=look.SERIES[0])
        if step.limit:
            edge = [place - 0.42, place + 0.42]
            axes.plot([step.limit] * 2, edge, color=look.INK, linewidth=1.6, zorder=4)
        behind = 1 - words + 0.018
        axes.text(behind, place, _words(step), va="center", size=9, transform=axes.get_yaxis_transform())
    names = [readable(look.shorten(step.name, 26)) for step in steps]
    axes.set_yticks(range(len(steps)), names)
    axes.set_xticks(ticks)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}" if x < 1e6 else f"{x:,.0f}"))
    look.bare(axes, "left")
    look.fix_label(axes)


def _words(step: PipelineStep) -> str:
    speed = f"{step.speed:,.0f}" if step.speed >= 10 else f"{step.speed:.2f}"
    share = f" · {step.share:.0%} of │" if step.share is not None else ""
    cost = f" · KL {step.kl:.3f}" if step.kl is not None else ""
    return f"{speed} · {step.times:.2f}×{share}{cost}"


def _told(step: PipelineStep) -> str:
    share = f", {step.share:.0%} of its limit" if step.share is not None else ""
    cost = f", KL {step.kl:.3f} nats" if step.kl is not None else ""
    return f"{step.name} {step.speed:,.4g} tokens a second, {step.times:.2f} times the first{share}{cost}"
